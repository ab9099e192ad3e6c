"""Losses. Each gives a sum and a count apart, so that averaging happens once, over the global batch."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_nll(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """−log p(target) in nats, float32: logsumexp(logits) − logits[target]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def masked_sum(values: Float[Array, "B T"], mask: Float[Array, "B T"]) -> tuple[Array, Array]:
    """Sum over the tokens that count, and their number. Under the mask may be anything, NaN included."""
    return jnp.sum(jnp.where(mask > 0, values * mask, 0.0)), jnp.sum(mask)


CHUNK_SCORES = 1 << 22
"""Scores (tokens × vocabulary) that are held at once: 16 MB in float32."""

Score = Callable[[Array, Array], Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def chunked_nll(
    score: Score,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Float[Array, "B T"],
    chunk: int | None = None,
) -> Float[Array, ""]:
    """Sum of the masked token NLL (nats), a few positions of every row at a time.

    score(hidden, head) gives logits [B, t, V]; all of them at once, [B, T, V] in float32, would be most of the
    memory of a step. The gradient is taken in the same pass as the value: three products with the head where
    recomputation takes four. chunk: positions at a time, chosen by CHUNK_SCORES when left out.
    """

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        h, y, m = part
        return total + masked_sum(token_nll(score(h, head), y), m)[0], None

    return jax.lax.scan(add, jnp.float32(0), _chunks(hidden, head, targets, mask, chunk))[0]


def _chunked_forward(score, hidden, head, targets, mask, chunk):
    def add(carry: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        total, slope = carry
        h, y, m = part
        nll, pull = jax.vjp(lambda h, head: masked_sum(token_nll(score(h, head), y), m)[0], h, head)
        along_h, along_head = pull(jnp.float32(1))
        return (total + nll, slope + along_head.astype(jnp.float32)), along_h

    start = jnp.float32(0), jnp.zeros(head.shape, jnp.float32)
    (total, slope), along = jax.lax.scan(add, start, _chunks(hidden, head, targets, mask, chunk))
    along = jnp.moveaxis(along, 0, 1).reshape(hidden.shape[0], -1, hidden.shape[2])[:, : hidden.shape[1]]
    return total, (along, slope.astype(head.dtype))


def _chunked_backward(score, chunk, residuals, scale):
    along, slope = residuals
    return along * scale.astype(along.dtype), slope * scale.astype(slope.dtype), None, None


chunked_nll.defvjp(_chunked_forward, _chunked_backward)


def _chunks(hidden: Array, head: Array, targets: Array, mask: Array, chunk: int | None) -> tuple[Array, ...]:
    """The inputs cut along T, [chunks, B, t, ...]; the last chunk is filled with positions that do not count."""
    rows, length = targets.shape
    chunk = min(length, chunk or max(1, CHUNK_SCORES // (rows * head.shape[0])))
    pad = -length % chunk

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)

    return cut(hidden), cut(targets), cut(mask)
