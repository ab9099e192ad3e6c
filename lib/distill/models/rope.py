"""Rotary position embedding, and the frequencies that the families scale in their own ways."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distill.models.config import Rope, Scaling

Rotation = tuple[Float[Array, "B T h"], Float[Array, "B T h"]]


def frequencies(rope: Rope) -> tuple[np.ndarray, float]:
    """Radians a position for each of width/2 pairs, and what cosine and sine are multiplied by.

    theta^(-2i/width), in float32 as the reference implementations compute it, then the family's scaling.
    """
    exponent = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
    plain = (np.float32(1) / np.float32(rope.theta) ** exponent).astype(np.float32)
    scaling = rope.scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / np.float32(scaling.factor), 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    raise AssertionError(scaling.kind)


def _llama3(plain: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Llama 3.1: long waves are slowed by the factor, short ones kept, a ramp between."""
    wavelength = np.float32(2 * math.pi) / plain
    original, low, high = scaling.original, scaling.low, scaling.high
    ramp = (original / wavelength - low) / (high - low)
    blended = (1 - ramp) * plain / scaling.factor + ramp * plain
    slowed = np.where(wavelength > original / low, plain / scaling.factor, plain)
    between = (wavelength >= original / high) & (wavelength <= original / low)
    return np.where(between, blended, slowed).astype(np.float32)


def rotation(rope: Rope, positions: Int[Array, "B T"]) -> Rotation:
    """Cosine and sine for every position, [B, T, width/2], float32."""
    freqs, magnitude = frequencies(rope)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(freqs)[None, None]
    return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def rotate(x: Float[Array, "B T N H"], rotation: Rotation, *, interleaved: bool) -> Float[Array, "B T N H"]:
    """Turn the leading 2h widths of each head; the rest passes through.

    Interleaved pairs come out de-interleaved: queries and keys are permuted alike, so scores are the same.
    """
    cos, sin = (part[:, :, None, :] for part in rotation)
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width].astype(jnp.float32), x[..., width:]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else jnp.split(turned, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(
        x.dtype
    )
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
