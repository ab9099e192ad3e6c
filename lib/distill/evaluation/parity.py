"""Does our model give the logits that the reference implementation gives for the same weights?"""

import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from distill import SCHEMA_VERSION
from distill.checkpoints.convert import load_checkpoint
from distill.errors import DistillError
from distill.files import write_json
from distill.models import decoder
from distill.models.config import ModelConfig

BLOCK = 64
"""Tokens that are compared at once: float64 of a large vocabulary is large."""


@dataclass(frozen=True)
class Parity:
    """How far two sets of logits lie apart; KL in nats a token, of the reference against ours."""

    max_difference: float
    mean_kl: float
    max_kl: float
    top1_agreement: float
    tokens: int

    def within(self, atol: float, max_kl: float) -> bool:
        """Neither limit is passed; what is not a number passes all."""
        return self.max_difference <= atol and self.max_kl <= max_kl

    def __str__(self) -> str:
        return (
            f"max |Δlogit| {self.max_difference:.2e}, KL mean {self.mean_kl:.2e} max {self.max_kl:.2e}, "
            f"top-1 agreement {self.top1_agreement:.2%} of {self.tokens} tokens"
        )


def compare(ours: Float[np.ndarray, "T V"], reference: Float[np.ndarray, "T V"]) -> Parity:
    """Compare logits token by token, in float64."""
    p, q = (_log_softmax(np.asarray(logits, np.float64)) for logits in (reference, ours))
    kl = np.maximum(np.sum(np.exp(p) * (p - q), axis=-1), 0.0)  # below zero by rounding alone
    return Parity(
        max_difference=float(np.max(np.abs(np.asarray(ours, np.float64) - reference))),
        mean_kl=float(np.mean(kl)),
        max_kl=float(np.max(kl)),
        top1_agreement=float(np.mean(np.argmax(ours, axis=-1) == np.argmax(reference, axis=-1))),
        tokens=len(kl),
    )


def together(parts: list[Parity]) -> Parity:
    """Of all tokens of several comparisons."""
    weights = [part.tokens for part in parts]
    return Parity(
        max_difference=float(np.max([part.max_difference for part in parts])),
        mean_kl=float(np.average([part.mean_kl for part in parts], weights=weights)),
        max_kl=float(np.max([part.max_kl for part in parts])),
        top1_agreement=float(np.average([part.top1_agreement for part in parts], weights=weights)),
        tokens=sum(weights),
    )


def check_parity(source: Path, reference: Path, out: Path, *, atol: float, max_kl: float) -> Parity:
    """Compare the Hugging Face folder `source` with the logits in `reference`, in float32, and write `out`.

    reference: an npz of `input_ids` [B, T] int32 and `logits` [B, T, V] float32. No tokenizer is needed.
    """
    ids, logits = _read(reference)
    config, params = load_checkpoint(source, dtype="float32")
    if logits.shape[-1] != config.vocab_size or ids.max() >= config.vocab_size or ids.min() < 0:
        raise DistillError(
            f"{reference} has logits for {logits.shape[-1]} ids and input_ids from {ids.min()} to {ids.max()}, "
            f"{source} has {config.vocab_size} ids: the reference is of another model"
        )
    parts = []
    for row, wanted in zip(ids, logits, strict=True):
        ours = np.asarray(_logits(config, params, row[None]))[0]
        blocks = (slice(start, start + BLOCK) for start in range(0, len(row), BLOCK))
        parts += [compare(ours[block], wanted[block]) for block in blocks]
    found = together(parts)
    report = {
        "schema": SCHEMA_VERSION,
        "source": str(source),
        "reference": str(reference),
        "family": config.family,
        **asdict(found),
        "atol": atol,
        "max_kl_allowed": max_kl,
        "passed": found.within(atol, max_kl),
    }
    write_json(out, report)
    return found


@partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: decoder.Params, tokens: Int[jax.Array, "B T"]) -> jax.Array:
    return decoder.logits(config, params, decoder.forward(config, params, jnp.asarray(tokens)))


def _read(file: Path) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, "B T V"]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ids, logits = arrays["input_ids"], arrays["logits"]
    except FileNotFoundError:
        raise DistillError(f"{file} does not exist") from None
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DistillError(f"{file} is no npz with input_ids and logits: {error}") from None
    fits = ids.ndim == 2 and ids.size > 0 and logits.ndim == 3 and ids.shape == logits.shape[:2]
    if not fits or ids.dtype.kind not in "iu" or logits.dtype.kind != "f":
        shapes = f"input_ids {ids.dtype} {list(ids.shape)}, logits {logits.dtype} {list(logits.shape)}"
        raise DistillError(f"{file} has {shapes}; expected int32 [B, T] and float32 [B, T, V]")
    return ids.astype(np.int32), logits


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
