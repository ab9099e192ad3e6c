"""A full disk ends a stage in one line and leaves no half-written target."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import small_disk
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.config.generation import Generation
from distill.files import write_json, write_jsonl
from distill.generation.run import generate_batch
from distill.text.chat import prompt_id, prompt_tokens
from distill.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

GENERATION = Generation(max_prefill_length=24, max_target_length=48, slots=8)


@pytest.fixture(scope="module", autouse=True)
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers of this file's batches keep to themselves, and have one device, as a user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        patch.setenv("XLA_FLAGS", "")
        yield


@pytest.fixture(scope="module")
def made(own_servers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts and their completions, on a disk with room."""
    folder = tmp_path_factory.mktemp("made")
    import_checkpoint(tiny_llama(folder / "hf", intermediate_size=2048), folder / "params", dtype="float32", origin="t")
    tokenizer = load_tokenizer(folder / "params" / "tokenizer")
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghij") for _ in range(12)) for _ in range(60)]
    turns = [[{"role": "user", "content": word}] for word in words]
    rows = [
        {
            "prompt_id": prompt_id(messages),
            "messages": messages,
            "prompt_token_ids": prompt_tokens(tokenizer, messages, "tokenizer"),
            "reference": None,
            "original": messages[0]["content"][::-1],
        }
        for messages in turns
    ]
    write_jsonl(folder / "0000.jsonl", rows)
    completions = folder / "completions/0000.parquet"
    generate_batch(
        folder / "params", folder / "0000.jsonl", completions, GENERATION, work=folder / "work", idle_seconds=5
    )
    batch = {"hash": "x", "read": 60, "kept": 60, "dropped": {}}
    write_json(folder / "index.json", {"schema": 1, "source": {"source": "words"}, "batches": {"0000": batch}})
    return folder


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk with 12 kB of room."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        room = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 3 * 4096))
        yield disk


def arguments(stage: str, made: Path, disk: Path) -> list:
    generation = GENERATION.model_dump_json()
    return {
        "generate": ["--teacher", made / "params", "--prompts", made / "0000.jsonl", "--generation", generation,
                     "--work", disk / "work", "--idle-seconds", "5", "--out", disk / "0000.parquet"],
        "build_dataset": ["--completions", made / "completions", "--index", made / "index.json",
                          "--dataset", json.dumps({"keep_length": True}), "--num-generations", "1", "--run", "t",
                          "--teacher", json.dumps({"source": "t"}), "--teacher-params", made / "params",
                          "--teacher-source", made, "--out", disk / "dataset"],
        "train": ["--init", made / "params", made / "0000.jsonl", "--name", "sft", "--folder", disk / "sft",
                  "--stage", json.dumps({"init": "x", "data": "original", "steps": 4, "checkpoint_every": 2}),
                  "--template", "tokenizer", "--max-length", "48"],
    }[stage]  # fmt: skip


@pytest.mark.parametrize("stage", ["generate", "build_dataset", "train"])
def test_a_full_disk(root: Path, made: Path, full: Path, stage: str) -> None:
    command = [sys.executable, root / "scripts" / f"{stage}.py", *arguments(stage, made, full)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: no space left")
    if stage != "train":  # Orbax's threads may complain in words of their own before
        assert "Traceback" not in done.stderr
    left = {path.name for path in full.rglob("*") if path.is_file()}
    assert not any(name.endswith((".parquet", ".tmp")) or name in ("final.json", "model.json") for name in left)
