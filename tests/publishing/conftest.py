"""A place of each kind, and something to publish."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from places import PLACES, Place, at_hand


@pytest.fixture(scope="session", params=PLACES)
def server(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A server of each kind, for all tests."""
    with PLACES[request.param]() as place:
        yield place


@pytest.fixture
def place(server: Place, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Somewhere of its own for a test."""
    server.fresh(request.node.name.partition("[")[0][:40])
    with at_hand(server):
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of two shards, its card and its ledger."""
    made = tmp_path / "dataset"
    (made / "data").mkdir(parents=True)
    for i in range(2):
        (made / f"data/train-0000{i}-of-00002.parquet").write_bytes(f"PAR1 shard {i}".encode() * 50)
    (made / "README.md").write_text("---\nlicense: mit\n---\n\n# answers\n")
    (made / "ledger.json").write_text("{}\n")
    (made / ".snakemake_timestamp").write_text("")
    return made
