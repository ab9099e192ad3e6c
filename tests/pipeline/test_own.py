"""Completions that came with the prompts, in place of the teacher's: the teacher is not asked."""

import json

import pytest
from project import Project

pytestmark = pytest.mark.slow


def test_own_completions_go_the_same_way_without_a_server(project: Project) -> None:
    project.recipe(dataset__completions="own", generation__num_generations=1)
    jobs = project.run("dataset")
    assert [job for job in jobs if job.startswith("generate")] == []
    assert {f"take completions {i:04d}" for i in range(3)} <= set(jobs)
    ledger = json.loads((project.run_folder / "dataset/ledger.json").read_text())
    assert ledger["samples"] == {"asked": 12, "kept": 12, "dropped": {}}
    assert project.run("dataset") == []
    assert {"train sft", "write the report"} <= project.stale()
