"""Drawing the next token by inverse CDF, from two uniforms a row.

Order: temperature, then top-k, then top-p, then one draw. The vocabulary is never sorted: top-k comes
from `lax.top_k`, and the nucleus of the whole vocabulary from a bisection on its smallest probability.
"""

import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from distill.config import Sampling

BLOCK = 128
"""Ids in a block of the two-level draw: the first uniform picks a block, the second an id in it."""


def request_seed(seed: int, prompt_id: str) -> int:
    """64 bits that a prompt's samples draw from: a hash of the run's seed and the prompt's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:8], "big")


def uniforms(
    seeds: UInt32[Array, "B 2"], samples: Int[Array, "B"], positions: Int[Array, "B"]
) -> Float[Array, "B 2"]:
    """Two numbers in [0, 1) for each row, a function of (seed, sample, position) alone."""

    def row(seed: Array, sample: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(seed), sample), position)
        return (jax.random.bits(key, (2,)) >> 8).astype(jnp.float32) * 2**-24

    return jax.vmap(row)(seeds, samples, positions)


def choose(
    sampling: Sampling, logits: Float[Array, "B V"], uniforms: Float[Array, "B 2"], real_vocab: int
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The next token of each row, and its log-probability (nats) in the model's own distribution.

    Rows of the vocabulary from `real_vocab` on are padding: no tokenizer knows them, they are never drawn.
    """
    logits = jnp.where(jnp.arange(logits.shape[-1])[None] < real_vocab, logits, -jnp.inf)
    token = _draw(sampling, logits, uniforms).astype(jnp.int32)
    drawn = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, drawn - jax.nn.logsumexp(logits, axis=-1)


def _draw(sampling: Sampling, logits: Float[Array, "B V"], u: Float[Array, "B 2"]) -> Int[Array, "B"]:
    if sampling.strategy == "greedy":
        return jnp.argmax(logits, axis=-1)
    top = jnp.max(logits, axis=-1, keepdims=True)
    if sampling.strategy in ("topk", "composite"):
        values, ids = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))
        mass = jnp.exp((values - top) / sampling.temperature)
        if sampling.strategy == "composite":
            before = jnp.cumsum(mass, axis=-1) - mass
            mass = jnp.where(before < sampling.top_p * jnp.sum(mass, axis=-1, keepdims=True), mass, 0.0)
        return jnp.take_along_axis(ids, pick(mass, u[:, 0])[:, None], axis=-1)[:, 0]
    mass = jnp.exp((logits - top) / sampling.temperature)
    if sampling.strategy == "nucleus":
        mass = jnp.where(mass >= nucleus_threshold(mass, sampling.top_p)[:, None], mass, 0.0)
    return pick_in_blocks(mass, u)


def pick(mass: Float[Array, "B V"], u: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first index whose cumulated mass exceeds u × total; never one without mass."""
    cumulated = jnp.cumsum(mass, axis=-1)
    total = cumulated[:, -1:]
    index = jnp.sum(cumulated <= u[:, None] * total, axis=-1)
    return jnp.minimum(index, jnp.sum(cumulated < total, axis=-1))


def pick_in_blocks(mass: Float[Array, "B V"], u: Float[Array, "B 2"]) -> Int[Array, "B"]:
    """`pick` in two levels: a sum over V, then two short scans, in place of one long scan."""
    rows, size = mass.shape
    blocks = jnp.pad(mass, ((0, 0), (0, -size % BLOCK))).reshape(rows, -1, BLOCK)
    block = pick(jnp.sum(blocks, axis=-1), u[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + pick(inside, u[:, 1])


def nucleus_threshold(mass: Float[Array, "B V"], top_p: float) -> Float[Array, "B"]:
    """The largest t for which the entries ≥ t hold at least the share `top_p` of the mass (arXiv 1904.09751).

    Bisection over the bits of a float32, which order like the numbers they stand for: exact in 31 sums.
    Entries that tie at the threshold are all in.
    """
    wanted = top_p * jnp.sum(mass, axis=-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(mass >= threshold[:, None], mass, 0.0), axis=-1) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros(mass.shape[0], jnp.int32)
    high = jax.lax.bitcast_convert_type(jnp.max(mass, axis=-1), jnp.int32) + 1
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
