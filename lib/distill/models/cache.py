"""The caches of the decode path: arrays of its own for each layer, so that appending to one moves no other.

Slot r of a cache with S slots holds the newest position that is r modulo S. Where S is no less than the
longest sequence that is position r itself; a layer with a window has only as many slots as its window needs,
and they are used in turn: with 4 slots and positions 0 to 5 written, they hold 4 5 2 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distill.models.config import ModelConfig

LayerCache = dict[str, Array]
Caches = list[LayerCache]

ROUNDING = 32
"""A ring's slots come in multiples of this many."""


def empty_cache(config: ModelConfig, batch: int, length: int, dtype: Any, *, chunk: int = 1) -> Caches:
    """Room for `length` positions a row, appended `chunk` at a time or fewer.

    Keys and values are [B, K, S, H]; latent attention has its latents [B, S, R] and rotary keys [B, S, U].
    A query of the chunk sees `window` positions, so a ring holds window − 1 + chunk, rounded up.
    """
    caches = []
    for layer in config.layers:
        ring = -(-((layer.window or length) - 1 + chunk) // ROUNDING) * ROUNDING
        slots = min(length, ring)
        if config.latent is not None:
            widths = {"latent": config.latent.kv_rank, "rope": config.latent.rope}
            caches.append({name: jnp.zeros((batch, slots, n), dtype) for name, n in widths.items()})
        else:
            shape = (batch, config.kv_heads, slots, config.head_dim)
            caches.append({name: jnp.zeros(shape, dtype) for name in ("k", "v")})
    return caches


def slots_of(cache: LayerCache) -> int:
    """How many positions a layer's cache holds at once."""
    return next(iter(cache.values())).shape[-2]


def write(
    cache: Float[Array, "B ... S H"], new: Float[Array, "B ... T H"], slots: Int[Array, "B T"]
) -> Float[Array, "B ... S H"]:
    """Put new[b, ..., t, :] at cache[b, ..., slots[b, t], :]; slots beyond it (a pad's) are dropped."""
    return jax.vmap(lambda c, n, s: c.at[..., s, :].set(n, mode="drop", unique_indices=True))(cache, new, slots)


def write_slots(positions: Int[Array, "B T"], valid: Int[Array, "B T"], slots: int) -> Int[Array, "B T"]:
    """Where each token is written; padding gets places beyond the cache, each its own."""
    beyond = slots + jnp.arange(positions.shape[1], dtype=positions.dtype)[None]
    return jnp.where(valid > 0, positions % slots, beyond)


def held(last: Int[Array, "B"], slots: int) -> Int[Array, "B S"]:
    """The position in each slot once position `last` is written; negative where there is none yet."""
    slot = jnp.arange(slots)[None]
    return last[:, None] - (last[:, None] - slot) % slots


def cache_mask(
    positions: Int[Array, "B T"], last: Int[Array, "B"], slots: int, window: int | None
) -> Bool[Array, "B T S"]:
    """Which slots a query sees, where the newest position of each row is `last`."""
    key, query = held(last, slots)[:, None, :], positions[:, :, None]
    seen = (key >= 0) & (key <= query)
    return seen if window is None else seen & (query - key < window)


def insert(
    caches: Caches,
    fresh: Caches,
    slots: Int[Array, "I"],
    rows: Int[Array, "I"],
    lengths: Int[Array, "P"],
) -> Caches:
    """Copy row rows[i] of `fresh` over row slots[i] of `caches` (out of range: over none).

    fresh: caches of sequences that were read in one chunk, each position p in slot p; lengths: of theirs. Of
    a sequence longer than a ring its last positions are taken, each to its slot.
    """

    def put(cache: Array, new: Array) -> Array:
        room, new = cache.shape[-2], new[rows]
        if new.shape[-2] > room:
            kept = jnp.maximum(held(lengths[rows] - 1, room), 0)
            kept = kept.reshape(kept.shape[0], *(1,) * (new.ndim - 3), room, 1)
            new = jnp.take_along_axis(new, kept, axis=-2)
        return cache.at[slots, ..., : new.shape[-2], :].set(new, mode="drop")

    return jax.tree.map(put, caches, fresh)
