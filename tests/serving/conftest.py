"""A tiny model, and real servers of it in processes of their own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serving import Running, started
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compilation cache for all servers of the session, and one device for them, as a user has."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(autouse=True)
def like_a_user(compiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared servers of this test keep to themselves."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "lib"))
    monkeypatch.delenv("DISTILL_API_KEY", raising=False)


@pytest.fixture(scope="session")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    import_checkpoint(
        tiny_llama(folder / "hf", max_position_embeddings=2048), folder / "params", dtype="float32", origin="tiny"
    )
    return folder / "params"


@pytest.fixture(scope="module")
def server(params: Path, compiled: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Four slots, 1024 tokens, 24 samples may wait, three alternatives a token, a token."""
    folder = tmp_path_factory.mktemp("server")
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": compiled, "XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parents[2] / "lib"),
    }  # fmt: skip
    with started(folder, environment, params, slots=4, max_length=1024, queue=24, top_logprobs=3) as running:
        yield running
