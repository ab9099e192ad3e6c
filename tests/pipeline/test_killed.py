"""Killed without a warning and started again, a run ends in the same bytes."""

import json
import re
import shutil

from project import Project


def outcome(project: Project) -> dict:
    """What must be the same: the dataset's bytes, the student's digest, each step's loss."""
    folder = project.run_folder
    rows = (folder / "students/sft/metrics.jsonl").read_text().splitlines()
    return {
        "dataset": {file.name: file.read_bytes() for file in (folder / "dataset/data").iterdir()},
        "student": json.loads((folder / "students/sft/final.json").read_text())["digest"],
        "losses": [(row["step"], row["loss"]) for row in map(json.loads, rows)],
    }


def test_killed_while_generating_and_while_training(finished: Project, project: Project) -> None:
    folder = project.run_folder
    shutil.rmtree(folder)
    project.kill_when(lambda: len(list(folder.glob("logs/generate/*.log"))) == 2, "students", alone=True)
    assert len(list(folder.glob("completions/*.parquet"))) < 3
    assert list((project.folder / ".snakemake/locks").iterdir()), "no lock was left: less is proved"
    project.kill_when(lambda: any(saved.name.isdigit() for saved in folder.glob("students/sft/steps/*")), "students")
    assert not (folder / "students/sft/params").exists()
    assert project.run("students") == ["train sft"]
    assert project.stale("students") == set()
    assert outcome(project) == outcome(finished)
    first = re.search(r"(\d+)/30", (folder / "logs/train/sft.log").read_text())
    assert int(first[1]) >= 3, "it started over"
