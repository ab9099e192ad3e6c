"""Strict by default: warnings are errors (pyproject.toml), rank promotion raises, no network but loopback."""

import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# A program of eight devices takes as many threads of a pool, and so does one that waits for a place among the 32 that a
# device holds. By itself the pool has a thread a device: full of what waits, an all-reduce never ends, and XLA aborts.
os.environ.setdefault("PJRT_NPROC", "24")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ["HF_HUB_OFFLINE"] = "1"

# Programs are compiled once, and found again by the next run. Each worker has its own: entries are not written at once.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).parent.parent / f".pytest_cache/compiled-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


LONGEST = ("pipeline", "training", "generation", "serving", "models")
"""Folders whose tests take long: they go first, so that no worker is left with one at the end."""


class ByFile(LoadScopeScheduling):
    """A file stays with one worker, for its fixtures; those of the pipeline share one finished project.

    Not `--dist loadgroup`, which with pytest 9.2 spreads groups over all workers (pytest-xdist issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "pipeline" if file.startswith("tests/pipeline/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = ROOT / "tests"

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another host fails at once instead of waiting for a time-out."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {host}: only loopback is allowed")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
