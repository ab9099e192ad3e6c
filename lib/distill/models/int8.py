"""Weights and caches in eight bits: whole numbers up to 127, and a scale for each row of the last axis.

A row x is kept as round(x / s) with s = max|x| / 127: no entry is off by more than s / 2. Products are computed in
the type that x had. Against the stored weights this saves memory and the reading of it, not arithmetic.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import Int8 as Bytes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """An array whose rows are quantized; `dtype` is the type it had."""

    values: Bytes[Array, "... D"]
    scale: Float[Array, "... 1"]
    dtype: Any = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, rows: Any) -> "Int8":
        """Of the leading axes."""
        return Int8(self.values[rows], self.scale[rows], self.dtype)

    def wide(self) -> Array:
        """The array again."""
        return (self.values.astype(jnp.float32) * self.scale).astype(self.dtype)


def quantized(x: Float[Array, "... D"]) -> Int8:
    """Rows of the last axis in eight bits; a row of zeros stays one."""
    rows = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(rows), axis=-1, keepdims=True) / 127
    values = jnp.round(rows / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
    return Int8(values, scale, jnp.dtype(x.dtype))


def wide(tree: Any) -> Any:
    """A tree with its quantized leaves written out."""
    return jax.tree.map(lambda a: a.wide() if isinstance(a, Int8) else a, tree, is_leaf=lambda a: isinstance(a, Int8))


def quantize_weights(tree: dict[str, Any]) -> dict[str, Any]:
    """Every matrix in eight bits but the routers, whose choice of experts is a step function of their scores.

    The tree is changed in place, so that no second copy of the model is held.
    """
    for name, value in tree.items():
        if isinstance(value, dict):
            quantize_weights(value)
        elif in_eight_bits(name, value):
            tree[name] = jax.block_until_ready(_quantized(value))
            value.delete()
    return tree


def in_eight_bits(name: str, weight: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether `quantize_weights` takes a weight."""
    return weight.ndim > 1 and name != "router"


_quantized = jax.jit(quantized)
