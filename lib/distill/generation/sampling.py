"""Drawing the next token by inverse CDF, from two uniforms a row.

Order: temperature, then top-k, then top-p and min-p, then one draw. Each filter is a threshold on the mass, so
the vocabulary is never sorted; entries that tie at a threshold are all in. A row's bits depend on that row
alone, whatever its neighbours ask for.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from distill.config.generation import Sampling

NARROW = 64
"""The best ids of a row, which usually hold all that its filters leave."""

BLOCK = 128
"""Ids in a block of the two-level draw: the first uniform picks a block, the second an id in it."""

FINE = 32
"""Ids in a block of the search for the likeliest."""


def uniforms(seeds: UInt32[Array, "B 2"], samples: Int[Array, "B"], positions: Int[Array, "B"]) -> Float[Array, "B 2"]:
    """Two numbers in [0, 1) for each row, a function of (seed, sample, position) alone."""

    def row(seed: Array, sample: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(seed), sample), position)
        return (jax.random.bits(key, (2,)) >> 8).astype(jnp.float32) * 2**-24

    return jax.vmap(row)(seeds, samples, positions)


def many_uniforms(
    seeds: UInt32[Array, "B 2"], samples: Int[Array, "B"], positions: Int[Array, "B"], count: int
) -> Float[Array, "B n 2"]:
    """`count` pairs like those of `uniforms`, and independent of them."""

    def row(seed: Array, sample: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(seed), sample), position)
        return (jax.random.bits(jax.random.fold_in(key, 1), (count, 2)) >> 8).astype(jnp.float32) * 2**-24

    return jax.vmap(row)(seeds, samples, positions)


class Draw(NamedTuple):
    """How a row is drawn; a field is a number, or an array [B] on the device."""

    temperature: float | Float[Array, "B"] = 1.0  # 0: the most likely token, no draw
    top_k: int | Int[Array, "B"] = 0  # 0: off
    top_p: float | Float[Array, "B"] = 1.0  # 1: off
    min_p: float | Float[Array, "B"] = 0.0  # share of the most likely token's probability; 0: off

    @classmethod
    def of(cls, sampling: Sampling) -> "Draw":
        """A recipe's settings."""
        if sampling.strategy == "greedy":
            return cls(temperature=0.0)
        return cls(sampling.temperature, sampling.top_k or 0, sampling.top_p or 1.0)


class Choice(NamedTuple):
    """The next token of each row. Log-probabilities (nats) are of the model's own distribution, untempered."""

    token: Int[Array, "B"]
    logprob: Float[Array, "B"]
    logsumexp: Float[Array, "B"]  # of the row's logits
    top_ids: Int[Array, "B k"] | None = None  # the likeliest tokens, best first
    top_logprobs: Float[Array, "B k"] | None = None
    sampled_ids: Int[Array, "B k"] | None = None  # drawn with replacement from the untempered distribution
    sampled_logprobs: Float[Array, "B k"] | None = None


def choose(
    draw: Draw, logits: Float[Array, "B V"], uniforms: Float[Array, "B 2"], real_vocab: int, top: int = 0
) -> Choice:
    """Draw the next token of each row; `top` of the likeliest are told beside it.

    Rows of the vocabulary from `real_vocab` on are padding: no tokenizer knows them, they are never drawn.
    """
    size = logits.shape[1]
    ids = jnp.arange(size)[None]
    logits = _known(logits, real_vocab)
    blocks = _blocks(logits)
    peaks = jnp.max(blocks.reshape(len(blocks), -1, FINE if top else BLOCK), axis=2)
    best = jnp.max(peaks, axis=1)
    own = jnp.sum(jnp.exp(blocks - best[:, None, None]), axis=-1)
    drawn = draw.temperature > 0
    filtered = (draw.top_k > 0) | (draw.top_p < 1) | (draw.min_p > 0)
    plain = jnp.all(~drawn | ((draw.temperature == 1) & ~filtered))
    sums, least = jax.lax.cond(
        plain, lambda: (own, jnp.zeros_like(best)), lambda: _asked_mass(draw, blocks, best, jnp.any(drawn & filtered))
    )
    block = pick(sums, uniforms[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    mass = jnp.exp((inside - best[:, None]) / _hot(draw)[:, None])
    token = block * BLOCK + pick(jnp.where(mass >= least[:, None], mass, 0.0), uniforms[:, 1])
    likeliest = jax.lax.cond(
        jnp.all(drawn), lambda: token, lambda: jnp.min(jnp.where(logits == best[:, None], ids, size), axis=-1)
    )
    token = jnp.where(drawn, token, likeliest).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    total = jnp.log(jnp.sum(own, axis=-1))
    choice = Choice(token, chosen - best - total, best + total)
    if not top:
        return choice
    scores, top_ids = likeliest_of(logits, peaks, top)
    return choice._replace(top_ids=top_ids, top_logprobs=scores - best[:, None] - total[:, None])


def likeliest_of(
    logits: Float[Array, "B V"], peaks: Float[Array, "B n"], top: int
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The `top` largest scores, best first, and their ids. peaks: of blocks of FINE, see `fine_peaks`.

    They lie in the `top` blocks with the largest peaks: the rest of the vocabulary is not sorted.
    """
    blocks = _blocks(logits).reshape(len(logits), -1, FINE)
    few = jnp.sort(jax.lax.top_k(peaks, min(top, peaks.shape[1]))[1], axis=1)
    scores, at = jax.lax.top_k(jnp.take_along_axis(blocks, few[:, :, None], axis=1).reshape(len(few), -1), top)
    ids = jnp.take_along_axis(few, at // FINE, axis=1) * FINE + at % FINE
    return scores, ids.astype(jnp.int32)


def fine_peaks(logits: Float[Array, "B V"]) -> Float[Array, "B n"]:
    """The largest score of each block, as `likeliest_of` takes them."""
    return jnp.max(_blocks(logits).reshape(len(logits), -1, FINE), axis=2)


def sampled_of(
    logits: Float[Array, "B V"], uniforms: Float[Array, "B n 2"], real_vocab: int
) -> tuple[Float[Array, "B n"], Int[Array, "B n"]]:
    """Log-probabilities and ids of n draws with replacement from softmax(logits), untempered and unfiltered."""
    blocks = _blocks(_known(logits, real_vocab))
    best = jnp.max(jnp.max(blocks, axis=2), axis=1)
    own = jnp.sum(jnp.exp(blocks - best[:, None, None]), axis=-1)
    block = jax.vmap(pick, in_axes=(None, 1), out_axes=1)(own, uniforms[:, :, 0])
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)
    mass = jnp.exp(inside - best[:, None, None]).reshape(-1, BLOCK)
    at = pick(mass, uniforms[:, :, 1].reshape(-1)).reshape(block.shape)
    scores = jnp.take_along_axis(inside, at[:, :, None], axis=2)[:, :, 0]
    total = best + jnp.log(jnp.sum(own, axis=-1))
    return scores - total[:, None], (block * BLOCK + at).astype(jnp.int32)


def _known(logits: Float[Array, "B V"], real_vocab: int) -> Float[Array, "B V"]:
    """Logits with what is no token at -inf."""
    size = logits.shape[1]
    return jnp.where(jnp.arange(size)[None] < real_vocab, logits, -jnp.inf) if real_vocab < size else logits


def _blocks(logits: Float[Array, "B V"]) -> Float[Array, "B n C"]:
    """Rows cut into blocks, the last one filled with -inf."""
    padded = jnp.pad(logits, ((0, 0), (0, -logits.shape[1] % BLOCK)), constant_values=-jnp.inf)
    return padded.reshape(len(logits), -1, BLOCK)


def _hot(draw: Draw) -> Float[Array, "B"]:
    return jnp.where(draw.temperature > 0, draw.temperature, 1.0)


def _asked_mass(
    draw: Draw, blocks: Float[Array, "B n C"], top: Float[Array, "B"], filtered: Bool[Array, ""]
) -> tuple[Float[Array, "B n"], Float[Array, "B"]]:
    """What each block holds once temperature and filters are applied, and the least mass that is in."""
    mass = jnp.exp((blocks - top[:, None, None]) / _hot(draw)[:, None, None])
    whole = mass.reshape(mass.shape[0], -1)
    least = jax.lax.cond(filtered, lambda: thresholds(whole, draw), lambda: jnp.zeros_like(top))
    return jnp.sum(jnp.where(mass >= least[:, None, None], mass, 0.0), axis=-1), least


def thresholds(mass: Float[Array, "B V"], draw: Draw) -> Float[Array, "B"]:
    """The least mass that each row's filters leave in. The most likely token has mass 1.

    Most rows are settled by their NARROW best; the whole vocabulary is looked at only for rows that are not.
    """
    narrow = jax.lax.top_k(mass, min(NARROW, mass.shape[-1]))[0]
    total = jnp.sum(mass, axis=-1)
    inside = (draw.top_k > 0) & (draw.top_k <= narrow.shape[-1])
    inside |= (draw.top_k == 0) & (jnp.sum(narrow, axis=-1) >= draw.top_p * total)
    settled = inside | ((draw.top_k == 0) & (draw.top_p >= 1))
    few = _top_k_then_top_p(narrow, draw, total)
    many = jax.lax.cond(jnp.all(settled), lambda: few, lambda: _top_k_then_top_p(mass, draw, total))
    unfiltered = (draw.top_k == 0) & (draw.top_p >= 1)
    return jnp.maximum(jnp.where(unfiltered, 0.0, jnp.where(settled, few, many)), draw.min_p)


def _top_k_then_top_p(mass: Float[Array, "B V"], draw: Draw, total: Float[Array, "B"]) -> Float[Array, "B"]:
    count = jnp.where(draw.top_k > 0, draw.top_k, mass.shape[-1])
    least = largest_threshold(mass, lambda kept: jnp.sum(kept > 0, axis=-1) >= count)
    kept = jnp.where(mass >= least[:, None], mass, 0.0)
    wanted = draw.top_p * jnp.where(draw.top_k > 0, jnp.sum(kept, axis=-1), total)
    return jnp.maximum(least, largest_threshold(kept, lambda kept: jnp.sum(kept, axis=-1) >= wanted))


def pick(mass: Float[Array, "B V"], u: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first index whose cumulated mass exceeds u × total; never one without mass."""
    cumulated = jnp.cumsum(mass, axis=-1)
    total = cumulated[:, -1:]
    index = jnp.sum(cumulated <= u[:, None] * total, axis=-1)
    return jnp.minimum(index, jnp.sum(cumulated < total, axis=-1))


def largest_threshold(
    mass: Float[Array, "B V"], enough: Callable[[Float[Array, "B V"]], Bool[Array, "B"]]
) -> Float[Array, "B"]:
    """The largest t for which what is left of `mass` at or above t is enough; 0 where nothing is.

    Bisection over the bits of a float32, which order like the numbers they stand for: exact in 31 looks. With
    `enough` a share of the sum this is the nucleus (arXiv 1904.09751).
    """

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        good = enough(jnp.where(mass >= threshold[:, None], mass, 0.0))
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    low = jnp.zeros(mass.shape[0], jnp.int32)
    high = jax.lax.bitcast_convert_type(jnp.max(mass, axis=-1), jnp.int32) + 1
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
