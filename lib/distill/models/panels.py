"""Weights as the products in C read them (native/products.c): panels of a few outputs each, one after the other."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from jaxtyping import Int8 as Bytes

from distill.models.int8 import Int8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Panels:
    """A weight of `shape` as panels of C outputs; what the last one lacks is zeros.

    scale: of each output, in eight bits.
    wanted: the rows of x that are worth a product, others get zeros; all of them if there is none.
    """

    values: Float[Array, "P D C"] | Bytes[Array, "P D C"]
    scale: Float[Array, "P C"] | None
    shape: tuple[int, ...] = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})
    wanted: Bool[Array, "B T"] | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a product with it gives."""
        return math.prod(self.shape) // self.values.shape[1]

    def __getitem__(self, rows: Any) -> Any:
        """Rows of the weight, of a matrix alone; all of it for `...`."""
        if rows is ...:
            return self
        panel, column = jnp.divmod(rows, self.values.shape[2])
        found = self.values[panel, :, column]
        return found if self.scale is None else found.astype(self.dtype) * self.scale[panel, column][..., None]


def fits_panels(weight: Array | Int8, taken: int) -> bool:
    """Whether the products in C take a weight, whose last `taken` axes are summed over."""
    return weight.dtype == jnp.float32 and (not isinstance(weight, Int8) or taken == 1)


def panelled(weight: Array | Int8, taken: int, width: int) -> Panels:
    """taken: how many of the last axes are summed over. width: outputs of a panel."""
    if not isinstance(weight, Int8):
        return Panels(_panelled(weight, taken, width), None, tuple(weight.shape), weight.dtype)
    scale = _panelled(weight.scale, 1, width)[:, 0]
    return Panels(_panelled(weight.values, 1, width), scale, tuple(weight.shape), weight.dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _panelled(weight: Array, taken: int, width: int) -> Array:
    matrix = weight.reshape(math.prod(weight.shape[: weight.ndim - taken]), -1)
    padded = jnp.pad(matrix, ((0, -len(matrix) % width), (0, 0)))
    return jnp.swapaxes(padded.reshape(-1, width, matrix.shape[1]), 1, 2)


def for_rows(weights: Any, wanted: Bool[Array, "B T"]) -> Any:
    """A tree of weights whose products in C are those of some rows alone, the others' are zeros."""
    panels = lambda leaf: isinstance(leaf, Panels)  # noqa: E731
    return jax.tree.map(lambda leaf: replace(leaf, wanted=wanted) if panels(leaf) else leaf, weights, is_leaf=panels)


def panel_products(x: Float[Array, "B T D"], weights: tuple[Panels, ...]) -> tuple[Float[Array, "B T F"], ...]:
    """x Wᵀ for each W. The bits of a row's depend on that row alone, for any number of rows."""
    results = [jax.ShapeDtypeStruct((*x.shape[:-1], weight.outputs), x.dtype) for weight in weights]
    given = [weights[0].wanted, *(part for weight in weights for part in (weight.values, weight.scale))]
    return tuple(jax.ffi.ffi_call("distill_products", results)(x, *(part for part in given if part is not None)))
