"""Hugging Face folders to convert, and what is in them bit by bit."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open
from tiny_models import tiny_tokenizer

from distill.checkpoints.hf import write_shards

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, as the safetensors library reads it."""
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            out |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return out


def bits(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor: what must be equal, NaN or not."""
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in tensors(folder).items()}


def rewrite(folder: Path, values: dict[str, np.ndarray], shard_bytes: int = 2_000_000_000) -> Path:
    """Replace a folder's tensors."""
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    write_shards(folder, values.items(), shard_bytes=shard_bytes)
    return folder


def any_bits(folder: Path, dtype: str, shard_bytes: int = 2_000_000_000) -> Path:
    """Replace a folder's tensors by others of that type, of random bits: NaNs, infinities, all there is."""
    random, kind = np.random.default_rng(0), np.dtype(TYPES[dtype])
    drawn = {
        name: np.frombuffer(random.bytes(a.size * kind.itemsize), kind).reshape(a.shape)
        for name, a in tensors(folder).items()
    }
    return rewrite(folder, drawn, shard_bytes)


def golden(name: str, out: Path) -> Path:
    """A copy of a family's golden folder, with a tokenizer."""
    out.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name / file, out / file)
    tiny_tokenizer(out)
    return out
