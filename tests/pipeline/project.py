"""A project of its own for a test: a copy of the graph and the library, tiny models, a few prompts, a recipe."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tiny_models import tiny_llama

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "run": "tiny",
    "models": {"teacher": {"source": "models/teacher"}, "student": {"source": "models/student"}},
    "prompts": {"source": "prompts.jsonl", "batch_size": 4, "num_batches": 3},
    "generation": {
        "max_prefill_length": 32,
        "max_target_length": 48,
        "num_generations": 2,
        "slots": 4,
        "sampling": {"temperature": 0.9},
    },
    "dataset": {"keep_length": True},
    "stages": {"sft": {"init": "student", "steps": 6, "batch_size": 2, "checkpoint_every": 1, "log_every": 1}},
    "evaluation": {"source": "held_out.jsonl", "batch_size": 4, "max_target_length": 40},
}


@dataclass(frozen=True)
class Outcome:
    """What Snakemake did or, in a dry run, would do: its jobs by their messages, its output, its exit status."""

    jobs: list[str]
    output: str
    code: int


@dataclass(frozen=True)
class Project:
    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Project":
        for name in ("Snakefile", "rules", "scripts", "profiles", "lib/distill"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy(source, folder / name)
        tiny_llama(folder / "models/teacher", seed=1)
        tiny_llama(folder / "models/student", seed=2, hidden_size=16, intermediate_size=24)
        project = cls(folder)
        project.add_prompts(14)
        held_out = [{"prompt": f"say {word}", "completion": word} for word in ("a", "bc", "def", "g")]
        write_lines(folder / "held_out.jsonl", held_out)
        project.recipe()
        return project

    def add_prompts(self, count: int) -> None:
        """Append prompts to the dataset."""
        path = self.folder / "prompts.jsonl"
        known = path.read_text().splitlines() if path.exists() else []
        letters = "abcdefghijklmnopqrstuvwxyz"
        new = [{"prompt": f"spell {letters[i % 26]} {letters[i // 26]}", "completion": letters[i % 26]}
               for i in range(len(known), len(known) + count)]  # fmt: skip
        path.write_text("".join(f"{line}\n" for line in [*known, *map(json.dumps, new)]))

    def recipe(self, **changes: Any) -> None:
        """Write config.yaml: the tiny recipe with changes, `a__b=1` for a.b."""
        values = json.loads(json.dumps(RECIPE))
        for path, value in changes.items():
            *parents, name = path.split("__")
            part = values
            for parent in parents:
                part = part.setdefault(parent, {})
            part[name] = value
        (self.folder / "config.yaml").write_text(yaml.safe_dump(values))

    @property
    def run_folder(self) -> Path:
        return self.folder / "results/tiny"

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake in a process group of its own."""
        environment = os.environ | {"PYTHONPATH": str(self.folder / "lib"), "XLA_FLAGS": ""}
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def snakemake(self, *arguments: str) -> Outcome:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        jobs = re.findall(r"^Job \d+: (.*)$", output, re.MULTILINE)
        return Outcome([job for job in jobs if job != "all is there"], output, process.returncode)

    def run(self, *arguments: str) -> list[str]:
        """The jobs of a run that must succeed."""
        outcome = self.snakemake(*arguments)
        assert outcome.code == 0, outcome.output
        return outcome.jobs

    def plan(self, *arguments: str) -> set[str]:
        """The jobs that a run would start, as far as a dry run can tell."""
        return set(self.run("--dry-run", *arguments))

    def kill_when(self, ready: Callable[[], bool], *arguments: str) -> None:
        """Start a run and kill it with all its children as soon as something is so."""
        process = self.start(*arguments)
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "it never came to that"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
