"""Losses. Each gives a sum and a count apart, so that averaging happens once, over the global batch."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill.models.layers import at_least_float32


def masked_sum(values: Float[Array, "B T"], mask: Float[Array, "B T"]) -> tuple[Array, Array]:
    """Sum over the tokens that count, and their number. Under the mask may be anything, NaN included."""
    return jnp.sum(jnp.where(mask > 0, values * mask, 0.0)), jnp.sum(mask)


class Sums(NamedTuple):
    """Over the tokens that count: the loss that is minimised, the NLL in it (nats), and how many were right.

    A token is right when no other has a higher score. Only `loss` has a gradient.
    """

    loss: Array
    nll: Array
    correct: Array


def token_sums(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], mask: Float[Array, "B T"], z_loss: float = 0.0
) -> Sums:
    """NLL and z_loss · log² Z, which keeps the scores' normaliser near one (PaLM, arXiv 2204.02311, section 5)."""
    logits = logits.astype(at_least_float32(logits))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    nll = normaliser - chosen
    correct = (chosen >= jnp.max(logits, axis=-1)).astype(nll.dtype)
    loss = nll + z_loss * normaliser**2 if z_loss else nll
    return Sums(*(masked_sum(values, mask)[0] for values in (loss, nll, correct)))


CHUNK_SCORES = 1 << 22
"""Scores (tokens × vocabulary) that are held at once: 16 MB in float32."""

Score = Callable[[Array, Array], Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def chunked_sums(
    score: Score,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Float[Array, "B T"],
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> Sums:
    """`token_sums`, a few positions of every row at a time.

    score(hidden, head) gives logits [B, t, V]; all of them at once, [B, T, V] in float32, would be most of the
    memory of a step. The gradient is taken in the same pass as the value: three products with the head where
    recomputation takes four. chunk: positions at a time, chosen by CHUNK_SCORES when left out.
    """

    def add(total: Sums, part: tuple[Array, Array, Array]) -> tuple[Sums, None]:
        h, y, m = part
        return jax.tree.map(jnp.add, total, token_sums(score(h, head), y, m, z_loss)), None

    return jax.lax.scan(add, _nothing(hidden), _chunks(hidden, head, targets, mask, chunk))[0]


def _chunked_forward(score, hidden, head, targets, mask, z_loss, chunk):
    def add(carry: tuple[Sums, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Sums, Array], Array]:
        total, slope = carry
        h, y, m = part

        def loss(h: Array, head: Array) -> tuple[Array, Sums]:
            sums = token_sums(score(h, head), y, m, z_loss)
            return sums.loss, sums

        value, pull, sums = jax.vjp(loss, h, head, has_aux=True)
        along_h, along_head = pull(jnp.ones_like(value))
        return (jax.tree.map(jnp.add, total, sums), slope + along_head.astype(slope.dtype)), along_h

    start = _nothing(hidden), jnp.zeros(head.shape, at_least_float32(head))
    (total, slope), along = jax.lax.scan(add, start, _chunks(hidden, head, targets, mask, chunk))
    along = jnp.moveaxis(along, 0, 1).reshape(hidden.shape[0], -1, hidden.shape[2])[:, : hidden.shape[1]]
    return total, (along, slope.astype(head.dtype))


def _chunked_backward(score, z_loss, chunk, residuals, slopes):
    along, slope = residuals
    return along * slopes.loss.astype(along.dtype), slope * slopes.loss.astype(slope.dtype), None, None


chunked_sums.defvjp(_chunked_forward, _chunked_backward)


def _nothing(hidden: Array) -> Sums:
    return Sums(*(jnp.zeros((), at_least_float32(hidden)) for _ in Sums._fields))


def _chunks(hidden: Array, head: Array, targets: Array, mask: Array, chunk: int | None) -> tuple[Array, ...]:
    """The inputs cut along T, [chunks, B, t, ...]; the last chunk is filled with positions that do not count."""
    rows, length = targets.shape
    chunk = min(length, chunk or max(1, CHUNK_SCORES // (rows * head.shape[0])))
    pad = -length % chunk

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)

    return cut(hidden), cut(targets), cut(mask)
