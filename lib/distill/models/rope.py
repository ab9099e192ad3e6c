"""Rotary position embedding, and the frequencies that the families scale in their own ways."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from distill.models.config import Rope, Scaling

Rotation = tuple[Float[Array, "B T h"], Float[Array, "B T h"]]


def frequencies(rope: Rope, *, long: bool = False) -> np.ndarray:
    """Radians a position for each of width/2 pairs; `long`: of a sequence beyond the original context.

    theta^(-2i/width), in float32 as the reference implementations compute it, then the family's scaling.
    """
    exponent = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
    period = np.float32(rope.theta) ** exponent
    scaling = rope.scaling
    if scaling is None:
        return np.float32(1) / period
    if scaling.kind == "linear":
        return np.float32(1) / period / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3(np.float32(1) / period, scaling)
    if scaling.kind == "yarn":
        return _yarn(np.float32(1) / period, rope.theta, scaling)
    return np.float32(1) / (np.asarray(scaling.long if long else scaling.short, np.float32) * period)


def _llama3(plain: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Llama 3.1: long waves are slowed by the factor, short ones kept, a ramp between."""
    wavelength = np.float32(2 * math.pi) / plain
    original, low, high = scaling.original, scaling.low, scaling.high
    ramp = (original / wavelength - low) / (high - low)
    blended = (1 - ramp) * plain / scaling.factor + ramp * plain
    slowed = np.where(wavelength > original / low, plain / scaling.factor, plain)
    between = (wavelength >= original / high) & (wavelength <= original / low)
    return np.where(between, blended, slowed).astype(np.float32)


def _yarn(plain: np.ndarray, theta: float, scaling: Scaling) -> np.ndarray:
    """YaRN (arXiv 2309.00071, section 3.2): pairs that turn often are kept, those that turn seldom slowed."""
    width = 2 * len(plain)

    def pair(rotations: float) -> float:
        """Which pair turns so many times over the original context."""
        return width * math.log(scaling.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0
    slowed = np.clip((np.arange(width // 2, dtype=np.float32) - first) / (last - first), 0, 1)
    return (plain / scaling.factor * slowed + plain * (1 - slowed)).astype(np.float32)


def magnitude(scaling: Scaling | None) -> float:
    """What cosine and sine are multiplied by.

    YaRN: m(mscale) / m(mscale_all_dim) with `yarn_mscale` as m, or m(1) where not both are set.
    LongRoPE (arXiv 2402.13753): √(1 + ln factor / ln original).
    """
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "longrope":
        grown = math.log(scaling.factor) / math.log(scaling.original) if scaling.factor > 1 else 0.0
        return math.sqrt(1 + grown)
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling, scaling.mscale) / yarn_mscale(scaling, scaling.mscale_all_dim)
    return yarn_mscale(scaling, 1.0)


def yarn_mscale(scaling: Scaling, mscale: float) -> float:
    """0.1 · mscale · ln(factor) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def rotation(rope: Rope, positions: Int[Array, "B T"], lengths: Int[Array, "B T"] | None = None) -> Rotation:
    """Cosine and sine for every position, [B, T, width/2], float32.

    lengths: tokens of the sequence that each position is in; only LongRoPE asks. Without it the choice
    between long and short factors must have been made, see `ModelConfig.reaching`.
    """
    scaling = rope.scaling
    radians = jnp.asarray(frequencies(rope))[None, None]
    if scaling is not None and scaling.short != scaling.long:
        if lengths is None:
            raise ValueError("LongRoPE with a cache: take config.reaching(the longest sequence) first")
        slower = jnp.asarray(frequencies(rope, long=True))[None, None]
        radians = jnp.where((lengths > scaling.original)[..., None], slower, radians)
    angles = positions[..., None].astype(jnp.float32) * radians
    factor = magnitude(scaling)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def sequence_lengths(positions: Int[Array, "B T"], same: Bool[Array, "B T T"]) -> Int[Array, "B T"]:
    """Tokens of the sequence that each position is in: one more than the last position of its segment."""
    return jnp.max(jnp.where(same, positions[:, None, :], 0), axis=-1) + 1


def rotate(x: Float[Array, "B T N H"], rotation: Rotation, *, interleaved: bool) -> Float[Array, "B T N H"]:
    """Turn the leading 2h widths of each head; the rest passes through.

    Interleaved pairs come out de-interleaved: queries and keys are permuted alike, so scores are the same.
    """
    cos, sin = (part[:, :, None, :] for part in rotation)
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width].astype(jnp.promote_types(x.dtype, jnp.float32)), x[..., width:]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else jnp.split(turned, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
