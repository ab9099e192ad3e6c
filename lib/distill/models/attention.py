"""Grouped-query attention, with and without a cache.

A query at index t sees a key at index s when both are real tokens of one segment, s ≤ t, and t − s < window.
With segments [1 1 2 2 0] (two packed examples and a pad) index 3 sees 2 and 3.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill.models.cache import LayerCache, write
from distill.models.config import ModelConfig
from distill.models.layers import Norm, at_least_float32, biased, fan_in, weight, zeros
from distill.models.rope import Rotation, rotate


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
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Attend over x itself, or, with a cache, over what it holds once x is written at `slots`."""
        interleaved = self.config.rope_interleaved
        q = biased(jnp.einsum("BTD,NHD->BTNH", x, self.q[...]), self.q_bias)
        k = biased(jnp.einsum("BTD,KHD->BTKH", x, self.k[...]), self.k_bias)
        v = biased(jnp.einsum("BTD,KHD->BTKH", x, self.v[...]), self.v_bias)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, turn, interleaved=interleaved)
        k = rotate(k, turn, interleaved=interleaved)
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if cache is not None:
            k, v = write(cache["k"], k, slots), write(cache["v"], v, slots)
            cache = {"k": k, "v": v}
        attended = attend(self.config, q, k, v, mask)
        return biased(jnp.einsum("BTNH,DNH->BTD", attended, self.o[...]), self.o_bias), cache


def attend(
    config: ModelConfig,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Softmax attention, scores in float32; a query that sees nothing gets the mean of nothing it may use."""
    groups = config.heads // config.kv_heads
    q = q.reshape(*q.shape[:2], config.kv_heads, groups, config.head_dim)
    scores = jnp.einsum("BTKGH,BKSH->BKGTS", q, k, preferred_element_type=at_least_float32(q))
    weights = attention_weights(config, scores, mask[:, None, None]).astype(v.dtype)
    return jnp.einsum("BKGTS,BKSH->BTKGH", weights, v).reshape(*q.shape[:2], config.heads, -1)


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
