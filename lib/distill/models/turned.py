"""Weights as a CPU decodes with them: [D, F] in memory in place of [F, D].

A product x Wᵀ is then one of row-major matrices as they lie. XLA's products on a CPU (YNNPACK, jax 0.10) are faster so
for few rows, and for any number of rows where D or F is small; elsewhere columns are (`layers.products`).
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.models.int8 import Int8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turned:
    """A weight of `shape`, stored as the matrix from all axes that it takes to all that it gives."""

    values: Float[Array, "D F"] | Int8
    shape: tuple[int, ...] = field(metadata={"static": True})

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def __getitem__(self, rows: Any) -> Any:
        """Rows of the weight, of a matrix alone; all of it for `...`."""
        if rows is ...:
            return self
        return jax.tree.map(lambda a: jnp.moveaxis(jnp.take(a, rows, axis=1), 0, -1), self.values)


def turn(weight: Array | Int8, taken: int) -> Turned:
    """taken: how many of the last axes are summed over; in eight bits it must be one."""
    return Turned(jax.tree.map(lambda a: _turned(a, taken), weight), tuple(weight.shape))


@partial(jax.jit, static_argnums=1)
def _turned(a: Array, taken: int) -> Array:
    return a.reshape(math.prod(a.shape[: a.ndim - taken]), -1).T
