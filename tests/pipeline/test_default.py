"""The default recipe as it comes, with a second stage behind its first one: what `make distill` promises."""

import csv
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from project import ROOT, Project

from distill.checkpoints.info import read_info

pytestmark = pytest.mark.slow

GOLD = {
    "init": "sft",
    "data": [{"source": "demo/prompts.jsonl", "prompt": "messages", "completion": "reference", "rows": 500}],
    "steps": 60, "batch_size": 64, "learning_rate": 3e-4, "warmup_steps": 10,
}  # fmt: skip
"""Fine-tuned again, on the answers that the prompts came with."""
MEMORY = 3000  # MB of a job


def test_it_recovers_half_of_the_gap_and_is_done_then(tmp_path: Path) -> None:
    project = Project.default(tmp_path / "default")
    recipe = yaml.safe_load((project.folder / "config.yaml").read_text())
    recipe["stages"]["gold"] = GOLD
    (project.folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    project.run()
    run = project.folder / "results/demo"
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert stages.keys() == {"sft", "logits", "gold"}
    assert all(stage["gap_recovered"] >= 0.5 for stage in stages.values()), stages
    steps = (run / "students/gold/metrics.jsonl").read_text().splitlines()
    first, finals = json.loads(steps[0]), {name: read_info(run / f"students/{name}/params").digest for name in stages}
    assert first["step"] == 1
    assert first["loss"] < 1, "it did not start from what the first stage had learned"
    assert len(set(finals.values())) == 3
    report = (run / "report.html").read_text()
    assert all(name in report for name in stages)
    tables = [
        csv.DictReader(file.read_text().splitlines(), delimiter="\t") for file in (run / "benchmarks").rglob("*.tsv")
    ]
    peaks = [float(row["max_rss"]) for table in tables for row in table if row["max_rss"] not in ("NA", "-")]
    assert peaks
    assert max(peaks) < MEMORY
    assert project.stale() == set()


def test_a_second_make_sets_nothing_up_again() -> None:
    """As `make test` has set it up already."""
    asked = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "distill"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = asked.stdout.splitlines()
    assert line.startswith(".venv/bin/snakemake --cores")
