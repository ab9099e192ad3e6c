"""Low-rank adapters (LoRA, arXiv 2106.09685): W + (alpha / rank) · B A in place of W, of which A and B are learned.

A weight of axes `N H D` takes D in and gives N H: A is [rank, D], B is [N, H, rank]. Experts have adapters of their
own. A starts at random and B at zero, so that the adapted model starts as the model. In the scanned layout each
has a leading L, as its weight has; the adapters' tree is the weights' with {a, b} for a leaf, and nothing else.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.models.layers import at_least_float32


class Adapters(NamedTuple):
    """A tree of adapters, and alpha / rank."""

    tree: dict[str, Any]
    scale: float


def sides(axes: str) -> tuple[list[str], list[str], list[str]]:
    """The axes of a weight that tell networks apart, those it gives and those it takes.

    `F D` → -, F, D   `D N H` → -, D, N H   `E X D` → E, X, D
    """
    names = axes.split()
    apart, names = (names[:1], names[1:]) if names[0] == "E" and len(names) > 2 else ([], names)
    cut = 1 if names[0] == "D" else len(names) - 1
    return apart, names[:cut], names[cut:]


def adapter_axes(axes: str) -> dict[str, str]:
    """The axes of A and B; `r` is the rank."""
    apart, out, into = sides(axes)
    return {"a": " ".join([*apart, "r", *into]), "b": " ".join([*apart, *out, "r"])}


def start(key: jax.Array, sizes: dict[str, int], axes: str, layers: int) -> dict[str, jax.Array]:
    """A and B of one weight in `layers` layers; `sizes` has the length of every axis, `r` among them."""
    shapes = {name: (layers, *(sizes[axis] for axis in part.split())) for name, part in adapter_axes(axes).items()}
    width = math.prod(sizes[axis] for axis in sides(axes)[2])
    return {"a": jax.random.normal(key, shapes["a"]) / math.sqrt(width), "b": jnp.zeros(shapes["b"])}


def merged(weights: dict[str, Any], adapters: dict[str, Any], scale: float) -> dict[str, Any]:
    """A layer's weights with their adapters added, those in float32 or wider: bfloat16 would lose small changes."""
    out = dict(weights)
    for name, adapter in adapters.items():
        if adapter.keys() == {"a", "b"}:
            weight = weights[name]
            out[name] = weight.astype(at_least_float32(weight)) + scale * product(adapter, weight)
        else:
            out[name] = merged(weights[name], adapter, scale)
    return out


def product(adapter: dict[str, Array], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """B A, with the shape of the weight."""
    a, b = adapter["a"], adapter["b"]
    if b.ndim + a.ndim - 2 == weight.ndim:
        return jnp.tensordot(b, a, 1)
    return jax.vmap(lambda a, b: jnp.tensordot(b, a, 1))(a, b)  # an adapter each for experts
