"""Hidden states of the student drawn towards the teacher's (FitNets, arXiv 1412.6550; DistilBERT, arXiv 1910.01108)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.config.training import HiddenStates
from distill.errors import DistillError
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.models.layers import at_least_float32

PROJECTIONS = "projections"
"""Where in the learned tree the matrices stand that are not the student's."""


def pairs(settings: HiddenStates, student: ModelConfig, teacher: ModelConfig) -> dict[int, int]:
    """Which layer of the teacher each of the student's is compared with.

    even, 3 layers and 12 → 0: 3, 1: 7, 2: 11
    """
    ours, theirs = len(student.layers), len(teacher.layers)
    if settings.layers == "even":
        return {i: round((i + 1) * theirs / ours) - 1 if theirs >= ours else i * theirs // ours for i in range(ours)}
    for side, count, layers in (("student", ours, settings.layers), ("teacher", theirs, settings.layers.values())):
        if odd := [layer for layer in layers if not 0 <= layer < count]:
            raise DistillError(f"hidden_states.layers: the {side} has no layer {odd[0]}: it has 0 to {count - 1}")
    return dict(settings.layers)


def make_projections(
    settings: HiddenStates, student: ModelConfig, teacher: ModelConfig, seed: int
) -> dict[str, jax.Array]:
    """A matrix [D, D of the teacher] for each compared layer, normal with variance 1/D; none where D is the same."""
    if student.hidden == teacher.hidden:
        return {}
    shape, layers = (student.hidden, teacher.hidden), pairs(settings, student, teacher)
    keys = jax.random.split(jax.random.key(seed % 2**32), len(layers))
    return {
        str(i): jax.random.normal(key, shape) / math.sqrt(student.hidden) for i, key in zip(layers, keys, strict=True)
    }


def student_of(params: decoder.Params) -> decoder.Params:
    """What is learned without the projections: weights, or adapters."""
    return {name: value for name, value in params.items() if name != PROJECTIONS}


def apart(
    settings: HiddenStates,
    layers: dict[int, int],
    student: Float[Array, "L B T D"],
    teacher: Float[Array, "M B T C"],
    projections: dict[str, Array],
    mask: Float[Array, "B T"],
) -> Array:
    """Sum over the tokens that count of 1 − cos, or of the mean square over D, meaned over the compared layers.

    The teacher's get no gradient; under the mask may be anything on either side.
    """
    counts, total = mask[..., None] > 0, jnp.zeros((), at_least_float32(student))
    for ours, theirs in layers.items():
        x, y = (jnp.where(counts, side, 0).astype(total.dtype) for side in (student[ours], teacher[theirs]))
        y = jax.lax.stop_gradient(y)
        if projections:
            x = jnp.einsum("BTD,DC->BTC", x, projections[str(ours)].astype(x.dtype))
        far = 1 - cosine(x, y) if settings.loss == "cosine" else jnp.mean((x - y) ** 2, axis=-1)
        total += jnp.sum(jnp.where(mask > 0, far * mask, 0.0))
    return total / len(layers)


def cosine(x: Float[Array, "... D"], y: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Of the angle between them; zero with a zero vector, whose gradient is zero too."""
    squares = jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1)
    whole = squares > 0
    return jnp.where(whole, jnp.sum(x * y, axis=-1) * jax.lax.rsqrt(jnp.where(whole, squares, 1.0)), 0.0)
