"""The golden checkpoints, loaded once a session, and one forward pass for all that is asked of them."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
from golden.families import FAMILIES

from distill.checkpoints.convert import load_checkpoint
from distill.evaluation.parity import Parity, compare
from distill.models import decoder
from distill.models.config import ModelConfig

FOLDER = Path(__file__).resolve().parent / "golden"
NAMES = tuple(sorted(FAMILIES))
CASES = ("plain", "padded", "packed")
ROWS, LENGTH = 2, 104
ATOL, MEAN_KL = 1e-4, 1e-6  # how far logits may be from those of transformers, both in float32

Arrays = dict[str, np.ndarray]
# The programs are large and their inputs tiny: half the time of optimising them is not earned back.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Case:
    """Inputs, filled up with padding to [2, 104], and what the reference gives where `real`."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    logits: np.ndarray
    real: np.ndarray

    def parity(self, ours: jax.Array) -> Parity:
        """Our logits, of all [2, 104], against the reference's, at real tokens."""
        return compare(np.asarray(ours)[self.real], self.logits[self.real])


@cache
def load(name: str) -> tuple[ModelConfig, decoder.Params]:
    """A golden checkpoint as it is imported, unscanned."""
    return load_checkpoint(FOLDER / name, dtype="float32")


@cache
def golden(name: str) -> Arrays:
    """What is in its `golden.npz`."""
    with np.load(FOLDER / name / "golden.npz") as arrays:
        return dict(arrays)


def case(arrays: Arrays, which: str) -> Case:
    """One of the three ways that a golden file lays out its sequences."""
    prefix = "" if which == "plain" else f"{which}_"
    tokens = _filled(arrays[f"{prefix}input_ids"])
    if which == "plain":
        segments, positions = np.ones_like(tokens), np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    else:
        ids = "attention_mask" if which == "padded" else "segment_ids"
        segments, positions = (_filled(arrays[f"{prefix}{part}"]) for part in (ids, "position_ids"))
    return Case(tokens, segments, positions, _filled(arrays[f"{prefix}logits"]), segments > 0)


def _filled(array: np.ndarray) -> np.ndarray:
    out = np.zeros((ROWS, LENGTH, *array.shape[2:]), array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out


@partial(jax.jit, static_argnums=0, static_argnames=("mesh", "remat"), compiler_options=QUICKLY)
def logits(config, params, case, *, mesh=None, remat="none"):
    """Logits of a case's inputs (tokens, segments, positions), with the weights in either layout."""
    hidden = decoder.forward(config, params, *case, mesh=mesh, remat=remat)
    return decoder.logits(config, params, hidden)


def run(config: ModelConfig, params: decoder.Params, case: Case, **how) -> jax.Array:
    """`logits` of a case."""
    return logits(config, params, (case.tokens, case.segments, case.positions), **how)
