"""A project of its own for a test: a copy of graph and library, tiny models, a few prompts, a recipe."""

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

import pytest
import yaml
from tiny_models import tiny_llama

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "rules", "scripts", "profiles", "lib/distill")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
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
    "stages": {"sft": {"init": "student", "steps": 30, "batch_size": 2, "checkpoint_every": 3, "log_every": 1}},
    "evaluation": {"source": "held_out.jsonl", "batch_size": 4, "max_target_length": 40},
}


@dataclass(frozen=True)
class Outcome:
    """What Snakemake did or, in a dry run, would do: its jobs by their messages, output, exit status."""

    jobs: list[str]
    output: str
    code: int


@dataclass(frozen=True)
class Project:
    """A folder with all of it. `results/tiny` is where its run goes."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Project":
        for name in PARTS:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        tiny_llama(folder / "models/teacher", seed=1)
        tiny_llama(folder / "models/student", seed=2, hidden_size=16, intermediate_size=24)
        project = cls(folder)
        project.add_prompts(14)
        answers = [{"prompt": f"say {word}", "completion": word} for word in ("a", "bc", "def", "g")]
        (folder / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in answers))
        project.recipe()
        return project

    @classmethod
    def default(cls, folder: Path) -> "Project":
        """The recipe and the demo that come along; its run is results/demo."""
        for name in (*PARTS, "config.yaml", "demo"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, target)
        return cls(folder)

    def copy(self, folder: Path) -> "Project":
        """The project elsewhere, results and what Snakemake knows of them included, dates as they were."""
        return Project(shutil.copytree(self.folder, folder))

    @property
    def run_folder(self) -> Path:
        return self.folder / "results/tiny"

    def add_prompts(self, count: int) -> None:
        """Append prompts to the dataset, each another one."""
        path = self.folder / "prompts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for i in range(len(lines), len(lines) + count):
            row = {"prompt": f"spell {LETTERS[i % 26]} {LETTERS[i // 26]}", "completion": LETTERS[i % 26]}
            lines.append(json.dumps(row))
        path.write_text("".join(f"{line}\n" for line in lines))

    def recipe(self, **changes: Any) -> None:
        """Write config.yaml: the tiny recipe with changes; `a__b=1` is a.b, None takes a setting out."""
        values = json.loads(json.dumps(RECIPE))
        for path, value in changes.items():
            *parents, name = path.split("__")
            part = values
            for parent in parents:
                part = part[parent]
            part[name] = value
        (self.folder / "config.yaml").write_text(yaml.safe_dump(values))

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text in one of the project's files."""
        text = (self.folder / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (self.folder / name).write_text(text.replace(old, new))

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake in a process group of its own."""
        runtime = self.folder.parent / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "PYTHONPATH": str(self.folder / "lib"),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "compiled"),
            "XLA_FLAGS": "",  # one device, as a user has
            "XDG_RUNTIME_DIR": str(runtime),  # where its server is found, and nobody else's
            "COLUMNS": "200",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def snakemake(self, *arguments: str, cores: str = "2", seconds: float = 900) -> Outcome:
        """`cores=""` leaves them out, as for --report, --lint and clusters."""
        process = self.start(*(["--cores", cores] if cores else []), *arguments)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"it did not end within {seconds:.0f} s:\n{process.communicate()[0]}")
        jobs = re.findall(r"^Job \d+: (.*)$", output, re.MULTILINE)
        done = [job for job in jobs if not job.endswith((" is there", " are there"))]  # but the named targets
        return Outcome(done, output, process.returncode)

    def run(self, *arguments: str) -> list[str]:
        """The jobs of a run that must succeed."""
        outcome = self.snakemake(*arguments)
        assert outcome.code == 0, outcome.output
        return outcome.jobs

    def stale(self, *arguments: str) -> set[str]:
        """The jobs that a run would start, as far as a dry run can tell."""
        return set(self.run("--dry-run", *arguments))

    def kill_when(self, ready: Callable[[], bool], *arguments: str, alone: bool = False) -> None:
        """Start a run and kill it as soon as something is so, with all its jobs or `alone`."""
        process = self.start("--cores", "2", *arguments)
        deadline = time.monotonic() + 180
        while not ready():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "it never came to that"
            time.sleep(0.01)
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        process.communicate()
