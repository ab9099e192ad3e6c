"""Deletes a run: its folder, and nothing that other runs share."""

import fcntl
import re
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from distill.config.settings import NAME
from distill.errors import DistillError

ALIVE = Path(".snakemake/alive")
"""A lock that every Snakemake of the folder holds (rules/hooks.smk)."""


def clean_run(results: Path, run: str) -> int:
    """Delete `{results}/{run}`, which must be a run's that nothing works at; gives the bytes that are free now."""
    folder = results / run
    if not re.match(NAME, run) or run == "models":
        raise DistillError(f"run {run!r} is not a run's name: RUN is the recipe's `run`, such as demo")
    if not (folder / "recipe.yaml").is_file():
        known = sorted(kept.parent.name for kept in results.glob("*/recipe.yaml"))
        raise DistillError(f"{folder} is not a run's folder (there is {', '.join(known) or 'none'} in {results})")
    if ALIVE.exists():
        with ALIVE.open("r+") as alive:
            try:
                fcntl.lockf(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # the two ways to say that another one has it
                raise DistillError("a snakemake is at work in this folder: wait for it, or stop it") from None
            except OSError:
                pass  # the disk knows no locks
    for file in folder.glob("students/*/steps.lock"):
        try:
            FileLock(file).acquire(timeout=0, poll_interval=0.05).lock.release()
        except Timeout:
            raise DistillError(f"{file.parent} is being trained: stop that first") from None
    size = folder_bytes(folder)
    shutil.rmtree(folder)
    return size


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, however deep; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
