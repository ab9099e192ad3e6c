"""Killed at any moment, without a warning, and started again, a run ends in the same bytes."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from chaos import LONGEST, Chaos
from project import Project

TARGETS = ("completions", "dataset", "students")


def outcome(project: Project) -> dict:
    """What must be the same: the dataset's bytes and ledger, the student's digest, each step's loss."""
    folder = project.run_folder
    rows = (folder / "students/sft/metrics.jsonl").read_text().splitlines()
    return {
        "completions": {file.name: file.read_bytes() for file in (folder / "completions").glob("*.parquet")},
        "dataset": {file.name: file.read_bytes() for file in (folder / "dataset/data").iterdir()},
        "ledger": json.loads((folder / "dataset/ledger.json").read_text()),
        "student": json.loads((folder / "students/sft/final.json").read_text())["digest"],
        "losses": [(row["step"], row["loss"]) for row in map(json.loads, rows)],
    }


@contextmanager
def chaos(project: Project, seed: int) -> Iterator[Chaos]:
    """A run from nothing but the imported models."""
    shutil.rmtree(project.run_folder)
    run = Chaos(project, TARGETS, seed)
    try:
        yield run
    finally:
        run.stop()


def test_killed_while_generating_and_while_training(finished: Project, project: Project) -> None:
    with chaos(project, seed=1) as run:
        run.kill(["server", "snakemake"])
        assert list((project.folder / ".snakemake/locks").iterdir()), "no lock was left: less is proved"
        steps = project.run_folder / "students/sft/steps"
        run.kill(["trainer"], ready=lambda: any(part.name.isdigit() for part in steps.glob("*")))
        assert list(steps.iterdir()), "no step was kept: less is proved"
        run.end()
    assert project.stale(*TARGETS) == set()
    assert outcome(project) == outcome(finished)


@pytest.mark.chaos
def test_thirty_kills(finished: Project, project: Project) -> None:
    with chaos(project, seed=0) as run:
        for _ in range(30):
            run.kill([run.random.choice(sorted(LONGEST))])
        run.end()
        assert len(run.killed) == 30
        assert set(run.killed) == set(LONGEST)
    assert project.stale(*TARGETS) == set()
    assert outcome(project) == outcome(finished)
