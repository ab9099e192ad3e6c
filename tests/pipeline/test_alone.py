"""A recipe without teacher and prompts: published answers in, a student out."""

import json
from pathlib import Path

import pytest
import yaml
from project import RECIPE, Project

from distill.files import read_json

pytestmark = pytest.mark.slow

ALONE = {
    "run": "tiny",
    "models": {"student": {"source": "models/student"}},
    "generation": {"max_prefill_length": 32, "max_target_length": 48},
    "stages": {
        "sft": {
            "init": "student",
            "data": [{"source": "qa.jsonl", "prompt": "question", "completion": "answer"}],
            "steps": 3,
            "batch_size": 2,
            "log_every": 1,
        }
    },
    "evaluation": RECIPE["evaluation"],
}
TARGETS = {"import student", "train sft", "export sft", "evaluate student", "evaluate sft", "add up the scores",
           "write the report"}  # fmt: skip


def write(project: Project, **changes: object) -> None:
    (project.folder / "config.yaml").write_text(yaml.safe_dump(ALONE | changes))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.make(tmp_path_factory.mktemp("alone") / "project")
    rows = [{"question": f"spell {letter}", "answer": letter} for letter in "abcdefgh"]
    (project.folder / "qa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write(project)
    return project


def named(jobs: list[str]) -> set[str]:
    return {" ".join(job.split("-")[0].split()[:2]) if job.startswith("import") else job for job in jobs}


def test_a_student_without_a_teacher(alone: Project) -> None:
    """All of it once; then nothing is stale, and a change of the published set trains again."""
    assert named(alone.run()) == TARGETS
    run = alone.run_folder
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == [
        "benchmarks", "evaluation", "export", "logs", "students",
    ]  # fmt: skip
    summary = read_json(run / "summary.json")
    assert set(summary["models"]) == {"student", "sft"}
    assert summary["stages"]["sft"]["gap_recovered"] is None
    assert summary["stages"]["sft"]["reason"] == "the recipe has no teacher to measure the gap by"
    assert read_json(run / "students/sft/final.json")["examples"] == 8
    page = (run / "report.html").read_text()
    assert "learned from answers that were there: qa.jsonl" in page
    assert "None" not in page.split("<details><summary>The recipe")[0]
    assert alone.run("--dry-run") == []
    data: Path = alone.folder / "qa.jsonl"
    data.write_text(data.read_text().replace('"answer": "h"', '"answer": "hh"'))
    assert named(alone.run("--dry-run")) == TARGETS - {"import student", "evaluate student"}


def test_what_comes_of_prompts_is_said_not_to_be_there(alone: Project) -> None:
    write(alone)
    assert set(alone.run("--dry-run", "prompts", "completions", "dataset")) == {
        "the recipe has no prompts",
        "the recipe has no prompts to be completed",
        "the recipe has no prompts to make a dataset of",
    }


def test_own_answers_need_no_teacher(alone: Project) -> None:
    """The student's tokenizer reads the prompts."""
    write(alone, prompts=RECIPE["prompts"], dataset={"completions": "own"},
          stages={"sft": {"init": "student", "steps": 3, "batch_size": 2}})  # fmt: skip
    jobs = named(alone.run("dataset"))
    assert jobs >= {"read and tokenize the prompts", "take completions 0000", "build the dataset"}
    assert not any("teacher" in job for job in jobs)
    card = (alone.run_folder / "dataset/README.md").read_text()
    assert "answers to 12 prompts, both from the same source" in card
    assert "teacher's" not in card.split("## What was kept")[0].replace("the teacher's answer to it", "")
