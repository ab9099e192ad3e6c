"""Losses. Each gives a sum and a count apart, so that averaging happens once, over the global batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill.models.layers import at_least_float32


def masked_sum(values: Float[Array, "B T"], mask: Float[Array, "B T"]) -> tuple[Array, Array]:
    """Sum over the tokens that count, and their number. Under the mask may be anything, NaN included."""
    return jnp.sum(jnp.where(mask > 0, values * mask, 0.0)), jnp.sum(mask)


class Sums(NamedTuple):
    """Over the tokens that count: the loss that is minimised, the NLL (nats), how many were right, and the
    divergence from the teacher (nats) and how far hidden states are apart, where there is one.

    A token is right when no other has a higher score. Only `loss` has a gradient.
    """

    loss: Array
    nll: Array
    correct: Array
    divergence: Array | None = None
    hidden: Array | None = None


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
"""Scores (tokens × vocabulary) of the student that are held at once: 16 MB in float32."""

Score = Callable[[Array, Array], Array]
Parts = dict[str, Array]  # of a batch, [B, T, ...]
Constants = dict[str, Any]
TokenLoss = Callable[[Array, Parts, Constants], Sums]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 6))
def chunked_sums(
    score: Score,
    loss: TokenLoss,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    parts: Parts,
    constants: Constants,
    chunk: int | None = None,
) -> Sums:
    """`loss` over all positions, a few of every row at a time.

    score(hidden, head) gives logits [B, t, V]; all of them at once, [B, T, V] in float32, would be most of the
    memory of a step. The gradient is taken in the same pass as the value: three products with the head where
    recomputation takes four. It goes to `hidden` and `head` alone.
    loss(logits, parts, constants) gives the sums of [B, t, V], with `parts` cut to the same positions. Zeros fill
    the last chunk: where parts["mask"] is zero, nothing may count.
    chunk: positions at a time, chosen by CHUNK_SCORES when left out.
    """

    def add(total: tuple[Sums, Sums], cut: tuple[Array, Parts]) -> tuple[tuple[Sums, Sums], None]:
        h, part = cut
        return _added(total, loss(score(h, head), part, constants)), None

    cuts = _chunks(hidden, head, parts, chunk)
    nothing = _nothing(score, loss, head, cuts, constants)
    return jax.lax.scan(add, (nothing, nothing), cuts)[0][0]


def _chunked_forward(score, loss, hidden, head, parts, constants, chunk):
    def add(carry: tuple[Any, Array], cut: tuple[Array, Parts]) -> tuple[tuple[Any, Array], Array]:
        total, slope = carry
        h, part = cut

        def value_and_sums(h: Array, head: Array) -> tuple[Array, Sums]:
            sums = loss(score(h, head), part, constants)
            return sums.loss, sums

        value, pull, sums = jax.vjp(value_and_sums, h, head, has_aux=True)
        along_h, along_head = pull(jnp.ones_like(value))
        return (_added(total, sums), slope + along_head.astype(slope.dtype)), along_h

    cuts = _chunks(hidden, head, parts, chunk)
    nothing = _nothing(score, loss, head, cuts, constants)
    start = (nothing, nothing), jnp.zeros(head.shape, at_least_float32(head))
    ((total, _), slope), along = jax.lax.scan(add, start, cuts)
    return total, (_whole(along, hidden.shape[1]), slope.astype(head.dtype))


def _chunked_backward(score, loss, chunk, residuals, slopes):
    along, slope = residuals
    return along * slopes.loss.astype(along.dtype), slope * slopes.loss.astype(slope.dtype), None, None


chunked_sums.defvjp(_chunked_forward, _chunked_backward)


def positions_at_once(rows: int, vocabulary: int) -> int:
    """How many positions of each row come to CHUNK_SCORES."""
    return max(1, CHUNK_SCORES // (rows * vocabulary))


def chunked_values(
    score: Score,
    values: Callable[[Array, Parts], Any],
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    parts: Parts,
    chunk: int | None = None,
) -> Any:
    """What values(logits, parts) gives for each position, [B, T, ...], a few of every row at a time; no gradient."""
    hidden, head = jax.lax.stop_gradient((hidden, head))
    cuts = _chunks(hidden, head, parts, chunk)
    found = jax.lax.map(lambda cut: values(score(cut[0], head), cut[1]), cuts)
    return jax.tree.map(lambda x: _whole(x, hidden.shape[1]), found)


def _whole(cut: Array, length: int) -> Array:
    """[chunks, B, t, ...] as [B, T, ...]"""
    return jnp.moveaxis(cut, 0, 1).reshape(cut.shape[1], -1, *cut.shape[3:])[:, :length]


def _added(total: tuple[Sums, Sums], more: Sums) -> tuple[Sums, Sums]:
    """A sum and what rounding has added to it, with `more` (Kahan 1965): hundreds of chunks add up like one."""
    add = jax.tree.map(jnp.subtract, more, total[1])
    after = jax.tree.map(jnp.add, total[0], add)
    return after, jax.tree.map(lambda new, old, added: (new - old) - added, after, total[0], add)


def _nothing(score: Score, loss: TokenLoss, head: Array, cuts: tuple[Array, Parts], constants: Constants) -> Sums:
    """The sums of no chunk."""

    def one(h: Array, part: Parts) -> Sums:
        return loss(score(h, head), part, constants)

    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], cuts))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _chunks(hidden: Array, head: Array, parts: Parts, chunk: int | None) -> tuple[Array, Parts]:
    """The inputs cut along T, [chunks, B, t, ...]; the last chunk is filled with zeros."""
    rows, length = hidden.shape[:2]
    chunk = min(length, chunk or positions_at_once(rows, head.shape[0]))
    pad = -length % chunk

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, (hidden, parts))
