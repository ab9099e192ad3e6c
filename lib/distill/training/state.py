"""What a training run carries from step to step, and where it lies on the mesh."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from distill.checkpoints.store import flat, load_weights, nest
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.parallel.mesh import replicated, weight_sharding


class State(NamedTuple):
    """Weights (scanned, float32) and the optimiser's state."""

    params: decoder.Params
    optimizer: Any


def initial_state(init: Path, optimizer: optax.GradientTransformation, mesh: Mesh) -> tuple[ModelConfig, State, State]:
    """A model's weights with a fresh optimiser, and where each array lies."""
    config, params = load_weights(init, mesh=mesh, dtype="float32", scanned=True)
    where = param_shardings(config, params, mesh)
    params = jax.device_put(params, where)
    # Left to itself, jit puts the moments of sharded weights on one device.
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        where,
        transform_non_params=lambda _: replicated(mesh),
    )
    state = State(params, jax.jit(optimizer.init, out_shardings=moments)(params))
    return config, state, State(where, moments)


def param_shardings(config: ModelConfig, params: decoder.Params, mesh: Mesh) -> decoder.Params:
    """The sharding of every weight of a scanned tree."""
    axes = decoder.weight_axes(config)

    def name(path: str) -> str:
        """`stacks.1.ffn.up` → the axes of that weight in the stack's first layer."""
        if not path.startswith("stacks."):
            return axes[path]
        _, stack, rest = path.split(".", 2)
        return axes[f"layers.{config.stacks[int(stack)][0]}.{rest}"]

    return nest({path: weight_sharding(mesh, name(path), leaf.shape) for path, leaf in flat(params).items()})
