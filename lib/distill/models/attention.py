"""Grouped-query attention, with and without a cache.

A query at index t sees a key at index s when both are real tokens of one segment, s ≤ t, and t − s < window.
With segments [1 1 2 2 0] (two packed examples and a pad) index 3 sees 2 and 3.
"""

from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill.models.cache import SEGMENT, LayerCache, Pieces, joined, write
from distill.models.config import ModelConfig
from distill.models.int8 import Int8, wide
from distill.models.layers import Norm, at_least_float32, biased, column, fan_in, product, products, weight, zeros
from distill.models.panels import Panels
from distill.models.rope import Rotation, rotate

Fused = Literal["cudnn", "xla"]


class Attention(nnx.Module):
    """Multi-head attention where G query heads share a key/value head (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        start, out = fan_in(config.hidden), fan_in(config.heads * config.head_dim)
        self.q = weight(config, "N H D", start, rngs)
        self.k = weight(config, "K H D", start, rngs)
        self.v = weight(config, "K H D", start, rngs)
        self.o = weight(config, "D N H", out, rngs)
        self.q_bias = weight(config, "N H", zeros, rngs) if config.qkv_bias else None
        self.k_bias = weight(config, "K H", zeros, rngs) if config.qkv_bias else None
        self.v_bias = weight(config, "K H", zeros, rngs) if config.qkv_bias else None
        self.o_bias = weight(config, "D", zeros, rngs) if config.output_bias else None
        self.q_norm = Norm(config, rngs, "H") if config.qk_norm else None
        self.k_norm = Norm(config, rngs, "H") if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        turn: Rotation,
        mask: Bool[Array, "B T S"],
        cache: LayerCache | None = None,
        slots: Int[Array, "B T"] | None = None,
        room: int | None = None,
        only: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Attend over x itself, or, with a cache, over what it holds once x is written at `slots`.

        room: slots that the cache may grow to; what a row attends to does not depend, to the bit, on how many
        it has now. only: the one query of each row that is wanted.
        """
        q, k, v = self.projected(x, turn)
        if only is not None:
            q, mask = column(q, only), column(mask, only)
        if cache is not None:
            k, v = write(cache["k"], k, slots), write(cache["v"], v, slots)
            cache = {"k": k, "v": v}
        if cache is not None and q.shape[1] == 1:
            spoken = self._attend_one(q[:, 0], k, v, mask[:, 0], room or mask.shape[-1])[:, None]
        else:
            k, v = (k, v) if cache is None else (joined(wide(k)), joined(wide(v)))
            spoken = attend(self.config, q, k, v, mask)
        return biased(from_heads(spoken, self.o[...]), self.o_bias), cache

    def _attend_one(self, q: Array, k: Pieces, v: Pieces, mask: Array, room: int) -> Array:
        """`attend_one`, in C where the weights say that this machine has it."""
        if isinstance(self.q[...], Panels) and not isinstance(k[0], Int8):
            return attend_one_in_c(self.config, q, k, v, mask)
        return attend_one(self.config, q, wide(k), wide(v), mask, room)

    def spoken(self, x: Float[Array, "B T D"], turn: Rotation, mask: Bool[Array, "B T T"]) -> Float[Array, "B T N H"]:
        """What each head says over x itself, before it is projected back."""
        return attend(self.config, *self.projected(x, turn), mask)

    def projected(
        self, x: Float[Array, "B T D"], turn: Rotation
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B K T H"], Float[Array, "B K T H"]]:
        """Queries, keys and values, turned by their positions."""
        interleaved = self.config.rope_interleaved
        q, k, v = all_to_heads(x, self.q[...], self.k[...], self.v[...])
        q, k, v = biased(q, self.q_bias), biased(k, self.k_bias), biased(v, self.v_bias)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, turn, interleaved=interleaved)
        k = rotate(k, turn, interleaved=interleaved)
        return q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)


def all_to_heads(x: Float[Array, "B T D"], *weights: Float[Array, "_ H D"] | Panels) -> list[Float[Array, "B T _ H"]]:
    """x projected to the heads of each weight. As one matrix: for three axes XLA makes a transposed copy each time."""
    pairs = zip(products(x, *weights), weights, strict=True)
    return [y.reshape(*x.shape[:2], *weight.shape[:2]) for y, weight in pairs]


def to_heads(x: Float[Array, "B T D"], weight: Float[Array, "N H D"] | Panels) -> Float[Array, "B T N H"]:
    """`all_to_heads` with one weight."""
    return all_to_heads(x, weight)[0]


def from_heads(x: Float[Array, "B T N H"], weight: Float[Array, "D N H"] | Panels) -> Float[Array, "B T D"]:
    """The sum of what the heads say, projected back."""
    return product(x.reshape(*x.shape[:2], -1), weight)


def attend(
    config: ModelConfig,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    fused: Fused | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention, scores in float32; a query that sees nothing gets the mean of nothing it may use.

    fused: one kernel that holds no scores of all positions; cuDNN's by default where it can.
    """
    if fused or _fuses(config, q, k):
        given = {"mask": mask[:, None], "scale": config.attention_scale, "implementation": fused or "cudnn"}
        return jax.nn.dot_product_attention(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), **given)
    groups = config.heads // config.kv_heads
    q = q.reshape(*q.shape[:2], config.kv_heads, groups, config.head_dim)
    scores = jnp.einsum("BTKGH,BKSH->BKGTS", q, k, preferred_element_type=at_least_float32(q))
    weights = attention_weights(config, scores, mask[:, None, None]).astype(v.dtype)
    return jnp.einsum("BKGTS,BKSH->BTKGH", weights, v).reshape(*q.shape[:2], config.heads, -1)


def _fuses(config: ModelConfig, q: Array, k: Array) -> bool:
    """Whether cuDNN's kernel takes these: half precision, heads of up to 128, whole tiles, no soft cap."""
    tiles = q.shape[1] % SEGMENT == 0 and k.shape[2] % SEGMENT == 0
    half = q.dtype in (jnp.bfloat16, jnp.float16) and k.dtype == q.dtype
    fits = config.head_dim <= 128 and config.head_dim % 8 == 0 and config.attention_softcap is None
    return tiles and half and fits and jax.default_backend() == "gpu"


def attend_one(
    config: ModelConfig,
    q: Float[Array, "B N H"],
    k: list[Float[Array, "B K S H"]],
    v: list[Float[Array, "B K S H"]],
    mask: Bool[Array, "B S"],
    room: int,
) -> Float[Array, "B N H"]:
    """`attend` for one query a row over pieces of a cache, in bits that do not depend on how many slots these have
    together: see `segments` and `settled_weights`."""
    keys, values = [segments(piece) for piece in k], [segments(piece) for piece in v]
    q = q.reshape(*k[0].shape[:2], 1, -1, k[0].shape[-1])

    def scored(part: Array) -> Array:
        asked = jnp.broadcast_to(q, (*part.shape[:3], *q.shape[3:]))
        return jnp.einsum("BKOGH,BKOJH->BKGOJ", asked, part, preferred_element_type=jnp.float32)

    def spoken(weights: Array, part: Array) -> Array:
        return jnp.einsum("BKGOJ,BKOJH->BKOGH", weights, part, preferred_element_type=jnp.float32)

    weights = settled_weights(config, [scored(part) for part in keys], mask[:, None, None], room)
    parts = [spoken(w.astype(part.dtype), part) for w, part in zip(weights, values, strict=True)]
    return in_order(parts, axis=2).astype(v[0].dtype).reshape(len(q), -1, v[0].shape[-1])


def attend_one_in_c(
    config: ModelConfig,
    q: Float[Array, "B N H"],
    k: list[Float[Array, "B K S H"]],
    v: list[Float[Array, "B K S H"]],
    mask: Bool[Array, "B S"],
) -> Float[Array, "B N H"]:
    """`attend_one` by native/attention.c, in float32: a row meets as many slots as it sees."""
    call = jax.ffi.ffi_call("distill_attention", jax.ShapeDtypeStruct(q.shape, q.dtype))
    how = {"scale": np.float32(config.attention_scale), "cap": np.float32(config.attention_softcap or 0)}
    return call(q, mask, *(part for pair in zip(k, v, strict=True) for part in pair), **how)


def segments(x: Float[Array, "... S H"]) -> Float[Array, "... O J H"]:
    """A piece of a cache cut into segments. With each one in a product of its own, a row's bits do not depend on how
    many there are: XLA blocks one product over all of S as S asks for. A piece of another size is one segment."""
    size = x.shape[-2]
    return x.reshape(*x.shape[:-2], -1, SEGMENT if size % SEGMENT == 0 else size, x.shape[-1])


def settled_weights(
    config: ModelConfig, scores: list[Float[Array, "... O J"]], mask: Bool[Array, "... S"], room: int
) -> list[Float[Array, "... O J"]]:
    """Softmax over the positions of all pieces as one over `room` of them, the others unseen.

    Its shape is then always the same, and with it the order in which XLA adds; barriers keep what depends on
    the number of segments out of its loops.
    """
    flat = jnp.concatenate([part.reshape(*part.shape[:-2], -1) for part in scores], axis=-1)
    rest = room - flat.shape[-1]
    padded = [jnp.pad(a, ((0, 0),) * (a.ndim - 1) + ((0, rest),)) for a in (flat, mask)]
    weights = jax.lax.optimization_barrier(attention_weights(config, *jax.lax.optimization_barrier(tuple(padded))))
    cut, start = [], 0
    for part in scores:
        size = part.shape[-2] * part.shape[-1]
        cut.append(weights[..., start : start + size].reshape(part.shape))
        start += size
    return cut


def in_order(parts: list[Float[Array, "..."]], axis: int) -> Float[Array, "..."]:
    """The sum over an axis of all of them, one after the other: parts of zeros at the end change no bit."""
    singles = [jax.lax.index_in_dim(part, i, axis, keepdims=False) for part in parts for i in range(part.shape[axis])]
    return reduce(jnp.add, singles)


def attention_weights(config: ModelConfig, scores: Array, mask: Array) -> Array:
    """Scale, soft cap (Gemma-2: cap·tanh(s/cap)), mask, softmax; in float32."""
    scores = scores * config.attention_scale
    if config.attention_softcap is not None:
        scores = config.attention_softcap * jnp.tanh(scores / config.attention_softcap)
    return jax.nn.softmax(jnp.where(mask, scores, -0.7 * jnp.finfo(jnp.float32).max), axis=-1)


def causal_mask(segments: Int[Array, "B T"], window: int | Int[Array, ""] | None = None) -> Bool[Array, "B T T"]:
    """Who sees whom without a cache; padding (segment 0) sees only itself: its softmax stays finite."""
    length = segments.shape[1]
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    seen = key <= query
    if window is not None:
        seen &= query - key < window
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    return (seen[None] & same) | (query == key)[None]
