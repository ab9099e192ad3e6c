"""The caches of the decode path: arrays of its own for each layer, so that appending to one moves no other.

Slot r of a cache with S slots holds the newest position that is r modulo S. Where S is no less than the
longest sequence that is position r itself; a layer with a window has only as many slots as its window needs,
and they are used in turn: with 4 slots and positions 0 to 5 written, they hold 4 5 2 3.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distill.models.config import Layer, ModelConfig
from distill.models.int8 import Int8, quantized

LayerCache = dict[str, Array | Int8]
Caches = list[LayerCache]

SEGMENT = 64
"""Positions that one query meets in one product; a ring's slots come in multiples of it."""


def empty_cache(
    config: ModelConfig, batch: int, length: int, dtype: Any, *, chunk: int = 1, int8: bool = False
) -> Caches:
    """Room for `length` positions a row, appended `chunk` at a time or fewer.

    Keys and values are [B, K, S, H]; latent attention has its latents [B, S, R] and rotary keys [B, S, U].
    """

    def empty(*shape: int) -> Array | Int8:
        zeros = jnp.zeros(shape, dtype)
        return quantized(zeros) if int8 else zeros

    caches = []
    for layer in config.layers:
        slots = slots_for(layer, length, chunk)
        if config.latent is not None:
            widths = {"latent": config.latent.kv_rank, "rope": config.latent.rope}
            caches.append({name: empty(batch, slots, n) for name, n in widths.items()})
        else:
            shape = (batch, config.kv_heads, slots, config.head_dim)
            caches.append({name: empty(*shape) for name in ("k", "v")})
    return caches


def slots_for(layer: Layer, length: int, chunk: int = 1) -> int:
    """How many slots a layer needs for `length` positions.

    A query of the chunk sees `window` positions, so a ring holds window − 1 + chunk, rounded up.
    """
    return length if layer.window is None else min(length, -(-(layer.window - 1 + chunk) // SEGMENT) * SEGMENT)


def resized(config: ModelConfig, caches: Caches, length: int) -> Caches:
    """The same caches with room for `length` positions; a layer at a time, so that no second copy is held.

    Every position that is looked at must be below the old and the new length.
    """
    for i, layer in enumerate(config.layers):
        if (slots := slots_for(layer, length)) != slots_of(caches[i]):
            caches[i] = _resized(caches[i], slots)
    return caches


@partial(jax.jit, static_argnums=1)
def _resized(cache: LayerCache, slots: int) -> LayerCache:
    def fit(a: Array) -> Array:
        rest = [(0, 0)] * (a.ndim - 2)
        return jnp.pad(a[..., :slots, :], (*rest, (0, max(0, slots - a.shape[-2])), (0, 0)))

    return jax.tree.map(fit, cache)


def slots_of(cache: LayerCache) -> int:
    """How many positions a layer's cache holds at once."""
    return next(iter(cache.values())).shape[-2]


def write(
    cache: Float[Array, "B ... S H"] | Int8, new: Float[Array, "B ... T H"], slots: Int[Array, "B T"]
) -> Float[Array, "B ... S H"] | Int8:
    """Put new[b, ..., t, :] at cache[b, ..., slots[b, t], :]; slots beyond it (a pad's) are dropped."""
    if isinstance(cache, Int8):
        new = quantized(new)
        return Int8(write(cache.values, new.values, slots), write(cache.scale, new.scale, slots), cache.dtype)
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

    lengths: of the sequences in `fresh`, whose slots are no fewer than a ring of `caches` has, or hold each
    position p in slot p. Of a sequence longer than a ring its last positions are taken, each to its slot.
    """

    def put(cache: Array, new: Array) -> Array:
        room, new = cache.shape[-2], new[rows]
        if new.shape[-2] > room:
            kept = jnp.maximum(held(lengths[rows] - 1, room), 0) % new.shape[-2]
            kept = kept.reshape(kept.shape[0], *(1,) * (new.ndim - 3), room, 1)
            new = jnp.take_along_axis(new, kept, axis=-2)
        return cache.at[slots, ..., : new.shape[-2], :].set(new, mode="drop")

    return jax.tree.map(put, caches, fresh)
