"""Whose turn it is: one trainer a folder, and the signal to stop."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import DistillError
from distill.parallel.processes import is_first

PATIENCE = 60.0
"""Seconds that a second trainer waits for the first to leave the folder."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second trainer out of the folder: it waits a minute, saying so, then fails naming the first."""
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "steps.pid"
    lock = FileLock(folder / "steps.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        process = owner.read_text().strip() if owner.exists() else "unknown"
        print(
            f"process {process} is training in {folder}: waiting up to {PATIENCE:.0f} s",
            file=sys.stderr,
        )
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise DistillError(
                f"process {process} is training in {folder}: wait for it, or stop it (kill {process})"
            ) from None
    try:
        owner.write_text(f"{os.getpid()}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def until_told() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM came: clusters send it before they take the machine."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
