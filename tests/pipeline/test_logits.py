"""Stored logits in the graph: scored where they were not captured, checked, and read by the stage that needs them."""

import json

import pytest
from project import Project

pytestmark = pytest.mark.slow

SOFT = {"init": "student", "steps": 2, "batch_size": 2, "objective": "topk_logits", "k": 4}


def test_what_is_captured_is_not_scored(project: Project) -> None:
    stages = {"soft": SOFT, "more": SOFT | {"k": 6}, "drawn": SOFT | {"estimator": "sampled"}}
    project.recipe(generation__top_logits=4, stages={"soft": SOFT})
    jobs = project.stale()
    assert {"compute some logits again", "train soft", "generate 0000"} <= jobs
    assert not any(job.startswith("score") for job in jobs)
    project.recipe(generation__top_logits=4, stages=stages)
    assert {"score 0000", "score 0001", "score 0002", "train more", "train drawn"} <= project.stale()


def test_original_answers_are_scored_and_trained_on(project: Project) -> None:
    """Without the generation server: what is asked for by name is made."""
    project.recipe(stages={"soft": SOFT | {"data": [{"source": "original", "corrupt": 0.5}]}}, prompts__num_batches=1)
    jobs = project.run("results/tiny/students/soft/params", "results/tiny/logits/check.json")
    assert {"score original-0000", "compute some logits again", "train soft"} <= set(jobs)
    assert not any(job.startswith("generate") for job in jobs)
    last = json.loads((project.run_folder / "students/soft/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    assert last["divergence"] >= 0
    assert last["nll"] > 0
    assert not list((project.run_folder / "students/soft").glob("logits*"))
    check = json.loads((project.run_folder / "logits/check.json").read_text())
    assert check["rows"] == 4
    assert check["worst_share_of_tolerance"] <= 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dataset__think": "drop"}, "dataset.think: drop changes the answers that stages.soft has logits of"),
        ({"models__student": {"derive": {"from": "techer"}}}, "models.student.derive.from: techer is not among models"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_anything_runs(
    project: Project, changes: dict, complaint: str
) -> None:
    project.recipe(**{"stages": {"soft": SOFT}} | changes)
    outcome = project.snakemake("--dry-run")
    assert outcome.code
    assert complaint in outcome.output
