"""Stages build on one another, and each depends on its own settings and data alone."""

import json

import pytest
from project import Project

from distill.files import read_json

pytestmark = pytest.mark.slow

ORIGINAL = {
    "init": "sft",
    "data": [{"source": "original", "weight": 3.0}, {"source": "published.jsonl", "weight": 1.0}],
    "loss_on": "assistant", "steps": 6, "batch_size": 2, "micro_batch_size": 1, "packing": True, "optimizer": "lion",
    "learning_rate": 1e-4, "held_out": 2, "held_out_every": 2, "log_every": 1, "lora": {"rank": 2}, "z_loss": 1e-4,
}  # fmt: skip
FINAL = "results/tiny/students/original/final.json"


def test_a_second_stage_goes_on_from_the_first(project: Project) -> None:
    published = [{"messages": [{"role": "user", "content": f"and {word}"}, {"role": "assistant", "content": word}]}
                 for word in ("h", "ij", "klm")]  # fmt: skip
    file = project.folder / "published.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in [*published, {"messages": published[0]["messages"][:1]}]))
    project.recipe(stages__original=ORIGINAL)
    assert project.run(FINAL) == ["train original"]
    final, before = (read_json(project.run_folder / f"students/{name}/final.json") for name in ("original", "sft"))
    assert final["step"] == 6
    assert (final["examples"], final["dropped"]) == (15, {"nothing_to_learn": 1})
    assert final["digest"] != before["digest"]
    project.recipe(stages__original=ORIGINAL | {"learning_rate": 2e-4})
    assert project.stale(FINAL) == {"train original"}
    project.recipe(stages__original=ORIGINAL)
    file.write_text(file.read_text().replace("klm", "kl"))
    assert project.stale(FINAL) == {"train original"}
    project.recipe(stages__original=ORIGINAL, stages__sft__learning_rate=1e-4)
    assert project.stale(FINAL) == {"train sft", "train original"}


def test_a_stage_that_asks_the_teacher(project: Project) -> None:
    kd = {"init": "student", "objective": "logits", "steps": 4, "batch_size": 2, "log_every": 1, "temperature": 2.0}
    project.recipe(stages__kd=kd)
    target = "results/tiny/students/kd/final.json"
    assert project.run(target) == ["train kd"]
    rows = (project.run_folder / "students/kd/metrics.jsonl").read_text().splitlines()
    assert all(row["loss"] == pytest.approx(4 * row["divergence"]) for row in map(json.loads, rows))
    assert project.stale(target) == set()
    project.recipe(stages__kd=kd | {"divergence": "jsd"})
    assert project.stale(target) == {"train kd"}
    project.recipe(stages__kd=kd | {"teacher": "student"})
    assert project.stale(target) == {"train kd"}
