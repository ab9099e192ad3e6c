"""Weights and caches in eight bits, by qwix: whole numbers, and a scale for each row of the last axis.

qwix is imported when it is first needed: a server without eight bits starts sooner by a thirtieth.

A row x is kept as round(x / s) with s = max|x| / 127.5: no entry is off by more than s / 2. Products are computed in
the type that x had. Against the stored weights this saves memory and the reading of it, not arithmetic.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from jaxtyping import Int8 as Bytes

if TYPE_CHECKING:
    import qwix


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A quantized array that knows the type it had: in bfloat16 qwix's own scale would be off by half a step more."""

    array: "qwix.QArray"  # with a float32 scale
    dtype: Any = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def values(self) -> Bytes[Array, "... D"]:
        return self.array.qvalue

    @property
    def scale(self) -> Float[Array, "... 1"]:
        return self.array.scale

    def __getitem__(self, rows: Any) -> "Int8":
        """Of the leading axes."""
        rows = jnp.asarray(rows) if isinstance(rows, np.ndarray) else rows  # qwix compares an index with Ellipsis
        return Int8(self.array[rows], self.dtype)

    def wide(self) -> Array:
        """The array again."""
        import qwix

        return qwix.dequantize(self.array).astype(self.dtype)


def quantized(x: Float[Array, "... D"]) -> Int8:
    """Rows of the last axis in eight bits; a row of zeros stays one."""
    import qwix

    rows = qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=range(x.ndim - 1))
    return Int8(rows, jnp.dtype(x.dtype))


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
