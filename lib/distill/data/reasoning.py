"""Answers to `reasoning-gym` tasks, judged by the task's own scorer.

A scorer may evaluate what a model wrote (sympy does), and need not come to an end: it works in a process of its own,
which is ended when it takes too long. That keeps out accidents, not an attacker, as in `sandbox`.
"""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill.config.dataset import Verifier
from distill.errors import DistillError

MEMORY = 4 << 30  # bytes that the scorer's process may have
STARTING = 120.0  # seconds until the package is loaded
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)

WORKER = """
import functools, json, os, resource, sys
memory = int(sys.argv[1])
if not set(sys.argv[2:]) <= set(sys.path):
    sys.path.insert(0, sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from reasoning_gym import get_score_answer_fn
scorer = functools.cache(get_score_answer_fn)
print("ready", file=out, flush=True)
for line in sys.stdin:
    task, answer, entry = json.loads(line)
    try:
        said = float(scorer(task)(answer=answer, entry=entry))
    except ValueError as error:
        said = f"unknown {task}" if "not registered" in str(error) else "failed"
    except Exception:
        said = "failed"
    print(json.dumps(said), file=out, flush=True)
"""


class ReasoningGym:
    """Below `min_score` by the scorer of its task. The reference is the entry, as JSON, that the question came from."""

    def __init__(self, settings: Verifier):
        python = settings.python or sys.executable
        if "/" in python:  # its process is in another folder
            python = str(Path(python).expanduser().absolute())
        self.command = [python, "-I", "-B", "-c", WORKER, str(MEMORY)]
        if settings.python is None:
            if (found := find_spec("reasoning_gym")) is None:
                raise DistillError(
                    "dataset.verifier: reasoning_gym is not installed: name the interpreter of an environment that has "
                    "it in dataset.verifier.python"
                )
            self.command.append(str(Path(found.origin).parents[1]))
        self.task, self.least, self.seconds = settings.task, settings.min_score, settings.seconds
        self.worker: _Worker | None = None

    def __call__(self, sample: Any) -> str | None:
        entry = _entry(sample.reference)
        if entry is None:
            return "no_reference"
        task = self.task or entry["metadata"].get("source_dataset")
        if not isinstance(task, str):
            raise DistillError(
                f"prompt {sample.prompt_id}: its entry has no source_dataset in its metadata: set dataset.verifier.task"
            )
        if self.worker is None:
            self.worker = _Worker(self.command)
        score = self.worker.ask([task, answer_of(sample.completion), entry], self.seconds)
        if score is None:
            self.worker.end()
            self.worker = None
            return "scorer_timeout"
        if isinstance(score, str) and score.startswith("unknown"):
            raise DistillError(f"dataset.verifier: reasoning_gym has no task {task}: check its name")
        return None if isinstance(score, float) and score >= self.least else "wrong"

    def close(self) -> None:
        """End the process."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None


def answer_of(completion: str) -> str:
    """What the last `<answer>` holds, or the text behind a thought, white space around it left out."""
    found = ANSWER.findall(completion)
    return (found[-1] if found else completion.rpartition("</think>")[2]).strip()


def _entry(reference: str | None) -> dict[str, Any] | None:
    """The entry with its `metadata`; None where there is none."""
    try:
        entry = json.loads(reference or "null")
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("metadata"), dict) else None


class _Worker:
    """A process with the package loaded; a line in is a question, a line out its score."""

    def __init__(self, command: list[str]):
        self.folder = tempfile.TemporaryDirectory(prefix="distill-reasoning-")
        try:
            self.process = subprocess.Popen(
                command, cwd=self.folder.name, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "MPLCONFIGDIR": self.folder.name},
            )  # fmt: skip
        except OSError as error:
            self.folder.cleanup()
            raise DistillError(f"dataset.verifier.python: {command[0]} does not start ({error.strerror})") from None
        if self._line(STARTING) != b"ready":
            self.end()
            raise DistillError(
                f"dataset.verifier: reasoning_gym does not load: try {command[0]} -c 'import reasoning_gym'"
            )

    def ask(self, question: list[Any], seconds: float) -> float | str | None:
        """The score, `failed` or `unknown` of the scorer, None when it took too long or its process is gone."""
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(seconds)
        except OSError:
            return None
        return None if line is None else json.loads(line)

    def _line(self, seconds: float) -> bytes | None:
        got = b""
        descriptor = self.process.stdout.fileno()
        while not got.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], seconds)
            part = os.read(descriptor, 1 << 16) if ready else b""
            if not part:
                return None
            got += part
        return got.strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()
        self.folder.cleanup()
