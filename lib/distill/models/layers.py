"""The small parts of a block. A weight is declared once, by named axes: shape, start, sharding follow."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from distill.models.config import ModelConfig
from distill.models.panels import Panels, panel_products

Start = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A weight that starts at zero."""
    return jnp.zeros(shape)


def ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A weight that starts at one."""
    return jnp.ones(shape)


def fan_in(inputs: int) -> Start:
    """Normal with variance 1/inputs."""
    return lambda key, shape: jax.random.normal(key, shape) / math.sqrt(inputs)


def weight(config: ModelConfig, axes: str, start: Start, rngs: nnx.Rngs) -> nnx.Param:
    """Declare a weight by its axes, such as `N H D`."""
    shape = tuple(config.sizes[axis] for axis in axes.split())
    return nnx.Param(start(rngs.params(), shape), axes=axes)


class Norm(nnx.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32 or wider."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, axes: str = "D", *, eps: float | None = None):
        self.eps, self.offset = config.norm_eps if eps is None else eps, config.norm_offset
        self.weight = weight(config, axes, zeros if self.offset else ones, rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(at_least_float32(x))
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.weight[...].reshape((1,) * (x.ndim - 1) + (-1,))
        if self.offset:
            return (wide * (self.offset + scale.astype(wide.dtype))).astype(x.dtype)
        return wide.astype(x.dtype) * scale


class FeedForward(nnx.Module):
    """Gated feed-forward network (arXiv 2002.05202): down(act(gate x) * up x). `hidden` names its axis."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, hidden: str = "F"):
        width, inner = config.hidden, config.sizes[hidden]
        self.activation, bias = config.activation, config.mlp_bias
        self.gate = weight(config, f"{hidden} D", fan_in(width), rngs)
        self.up = weight(config, f"{hidden} D", fan_in(width), rngs)
        self.down = weight(config, f"D {hidden}", fan_in(inner), rngs)
        self.gate_bias = weight(config, hidden, zeros, rngs) if bias else None
        self.up_bias = weight(config, hidden, zeros, rngs) if bias else None
        self.down_bias = weight(config, "D", zeros, rngs) if bias else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return biased(product(self.inner(x), self.down[...]), self.down_bias)

    def inner(self, x: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        """What each neuron gives to the projection down."""
        gate, up = products(x, self.gate[...], self.up[...])
        return activate(self.activation, biased(gate, self.gate_bias)) * biased(up, self.up_bias)


def products(
    x: Float[Array, "B T D"], *weights: Float[Array, "... D"] | Panels, wide: bool = False
) -> tuple[Float[Array, "B T F"], ...]:
    """x Wᵀ for each W, whose last axes come to D and whose first ones to F; `wide` for results in float32 or wider.

    By XLA on a CPU one token a row is turned into columns: a tall matrix times few columns takes a fifth less time than
    few rows times a wide one. Barriers keep XLA from turning them back.
    """
    if isinstance(weights[0], Panels):
        return panel_products(x, weights)
    how = {"preferred_element_type": at_least_float32(x)} if wide else {}
    few = x.shape[1] == 1 and jax.default_backend() == "cpu"
    columns = jax.lax.optimization_barrier(x[:, 0].T) if few else None

    def times(weight: Array) -> Array:
        matrix = weight.reshape(-1, x.shape[-1])
        if columns is None:
            return jnp.einsum("BTD,FD->BTF", x, matrix, **how)
        return jax.lax.optimization_barrier(jnp.einsum("FD,DB->FB", matrix, columns, **how)).T[:, None]

    return tuple(map(times, weights))


def product(
    x: Float[Array, "B T D"], weight: Float[Array, "... D"] | Panels, *, wide: bool = False
) -> Float[Array, "B T F"]:
    """`products` with one matrix."""
    return products(x, weight, wide=wide)[0]


def column(x: Float[Array, "B T *rest"], at: Int[Array, "B"]) -> Float[Array, "B 1 *rest"]:
    """One column of each row."""
    return jnp.take_along_axis(x, at.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)


def at_least_float32(x: Array) -> jnp.dtype:
    """What to compute in where bfloat16 is too coarse: float32, or float64 where x is that already."""
    return jnp.promote_types(x.dtype, jnp.float32)


def activate(name: str, x: Array) -> Array:
    """The activation that the configuration names."""
    return jax.nn.silu(x) if name == "silu" else jax.nn.gelu(x, approximate=True)


def biased(x: Array, bias: nnx.Param | None) -> Array:
    """x plus a bias over its trailing axes, where there is one."""
    if bias is None:
        return x
    value = bias[...]
    return x + value.reshape((1,) * (x.ndim - value.ndim) + value.shape)
