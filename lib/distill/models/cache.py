"""The caches of the decode path: arrays of its own for each layer, so that appending to one moves no other.

An array may be cut into pieces, slots 0 to P − 1 of all rows in the first: a cache then grows by a piece, and nothing
is copied.

Slot r of a cache with S slots holds the newest position that is r modulo S. Where S is no less than the
longest sequence that is position r itself; a layer with a window has only as many slots as its window needs,
and they are used in turn: with 4 slots and positions 0 to 5 written, they hold 4 5 2 3.
"""

from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distill.models.config import Layer, ModelConfig
from distill.models.int8 import Int8, quantized

Pieces = list[Array | Int8]
LayerCache = dict[str, Pieces]
Caches = list[LayerCache]

SEGMENT = 64
"""Positions that one query meets in one product; a ring's slots come in multiples of it."""
EVEN = 4
"""Pieces of the least size that a cache begins with."""
BEYOND = 1 << 29
"""More slots than any cache has."""


def empty_cache(
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: Any,
    *,
    chunk: int = 1,
    piece: int | None = None,
    int8: bool = False,
) -> Caches:
    """Room for `length` positions a row, appended `chunk` at a time or fewer.

    Keys and values are [B, K, S, H]; latent attention has its latents [B, S, R] and rotary keys [B, S, U]. With
    `piece`, each is in `piece_sizes`.
    """
    caches = []
    for layer in config.layers:
        slots = slots_for(layer, length, chunk)
        if config.latent is not None:
            shapes = {"latent": (config.latent.kv_rank,), "rope": (config.latent.rope,)}
        else:
            shapes = dict.fromkeys(("k", "v"), (config.kv_heads, config.head_dim))
        sizes = piece_sizes(slots, piece or slots)
        caches.append(
            {name: [_zeros(batch, shape, size, dtype, int8) for size in sizes] for name, shape in shapes.items()}
        )
    return caches


def piece_sizes(slots: int, piece: int) -> list[int]:
    """`slots` as pieces: EVEN of `piece`, pairs of twice as much, four times and so on, and a last one of the rest.

    13 by 1 are 1 1 1 1 2 2 4 1: few pieces hold many slots, and not many more than are needed.
    """
    sizes, left = [], slots
    while left > 0:
        times = 1 << max(0, (len(sizes) - EVEN) // 2 + 1)
        sizes.append(min(piece * times, left))
        left -= sizes[-1]
    return sizes


def _zeros(batch: int, shape: tuple[int, ...], slots: int, dtype: Any, int8: bool) -> Array | Int8:
    zeros = jnp.zeros((batch, *shape[:-1], slots, shape[-1]), dtype)
    return quantized(zeros) if int8 else zeros


def slots_for(layer: Layer, length: int, chunk: int = 1) -> int:
    """How many slots a layer needs for `length` positions.

    A query of the chunk sees `window` positions, so a ring holds window − 1 + chunk, rounded up.
    """
    return length if layer.window is None else min(length, -(-(layer.window - 1 + chunk) // SEGMENT) * SEGMENT)


def cut_to(config: ModelConfig, caches: Caches, length: int, piece: int) -> Caches:
    """Caches without the pieces that `length` positions do not need.

    Every position that is looked at must be below `length`.
    """
    return [
        {name: pieces[: len(sizes)] for name, pieces in cache.items()}
        for sizes, cache in zip(_sizes(config, length, piece), caches, strict=True)
    ]


def more_pieces(config: ModelConfig, caches: Caches, length: int, piece: int) -> Caches:
    """The empty pieces, `piece` slots each, that caches for `length` positions have beyond those of `caches`."""

    def like(array: Array, slots: int) -> Array:
        return jnp.zeros((*array.shape[:-2], slots, array.shape[-1]), array.dtype)

    return [
        {
            name: [jax.tree.map(partial(like, slots=size), pieces[0]) for size in sizes[len(pieces) :]]
            for name, pieces in cache.items()
        }
        for sizes, cache in zip(_sizes(config, length, piece), caches, strict=True)
    ]


def joined_with(caches: Caches, more: Caches) -> Caches:
    """Caches with pieces added behind theirs."""
    pairs = zip(caches, more, strict=True)
    return [{name: pieces + new[name] for name, pieces in cache.items()} for cache, new in pairs]


def _sizes(config: ModelConfig, length: int, piece: int) -> list[list[int]]:
    return [piece_sizes(slots_for(layer, length), piece) for layer in config.layers]


def slots_of(cache: LayerCache) -> int:
    """How many positions a layer's cache holds at once."""
    return sum(piece.shape[-2] for piece in next(iter(cache.values())))


def _starts(pieces: Pieces) -> list[int]:
    """The slot that each piece begins with."""
    return [0, *accumulate(piece.shape[-2] for piece in pieces[:-1])]


def write(pieces: Pieces, new: Float[Array, "B ... T H"], slots: Int[Array, "B T"]) -> Pieces:
    """Put new[b, ..., t, :] at slot slots[b, t] of row b; slots beyond the last one (a pad's) are dropped."""
    written = []
    for start, piece in zip(_starts(pieces), pieces, strict=True):
        here = slots - start
        written.append(_write(piece, new, jnp.where(here < 0, here + BEYOND, here)))
    return written


def _write(piece: Array | Int8, new: Array, slots: Int[Array, "B T"]) -> Array | Int8:
    if isinstance(piece, Int8):
        return jax.tree.map(partial(_write, slots=slots), piece, quantized(new))
    if slots.size == 1:  # XLA would make an update of this scatter, and copy the piece for it: add one that is dropped
        slots = jnp.concatenate([slots, slots + BEYOND], axis=1)
        new = jnp.concatenate([new, new], axis=-2)
    return jax.vmap(lambda c, n, s: c.at[..., s, :].set(n, mode="drop", unique_indices=True))(piece, new, slots)


def joined(pieces: list[Float[Array, "B ... S H"]]) -> Float[Array, "B ... S H"]:
    """The pieces as one array."""
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-2)


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
    """Copy row rows[i] of `fresh`, which is in one piece, over row slots[i] of `caches` (out of range: over none).

    lengths: of the sequences in `fresh`, whose slots are no fewer than a ring of `caches` has, or hold each
    position p in slot p. Of a sequence longer than a ring its last positions are taken, each to its slot.
    """

    def put(start: int, room: int, piece: Array, new: Array) -> Array:
        new = new[rows]
        if new.shape[-2] > room:
            kept = jnp.maximum(held(lengths[rows] - 1, room), 0) % new.shape[-2]
            kept = kept.reshape(kept.shape[0], *(1,) * (new.ndim - 3), room, 1)
            new = jnp.take_along_axis(new, kept, axis=-2)
        new = new[..., start : start + piece.shape[-2], :]
        return piece.at[slots, ..., : new.shape[-2], :].set(new, mode="drop")

    filled = []
    for cache, whole in zip(caches, fresh, strict=True):
        room, new = slots_of(cache), {}
        for name, pieces in cache.items():
            starts = zip(_starts(pieces), pieces, strict=True)
            new[name] = [jax.tree.map(partial(put, start, room), piece, whole[name][0]) for start, piece in starts]
        filled.append(new)
    return filled
