"""What a training run carries from step to step, and where it lies on the mesh."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from distill.checkpoints.store import flat, load_weights, nest
from distill.config.stages import Stage
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.parallel.mesh import replicated, weight_sharding
from distill.training.adapters import adapter_shardings, make_adapters
from distill.training.hidden_states import PROJECTIONS, make_projections


class State(NamedTuple):
    """What is learned, in float32 and scanned (all weights, or the adapters on frozen ones), and the optimiser's."""

    params: decoder.Params
    optimizer: Any


class Frozen(NamedTuple):
    """Weights that adapters change, scanned and in the type that they are stored in; and alpha / rank."""

    weights: decoder.Params
    scale: float


class Start(NamedTuple):
    """A run before its first step. `where`: the sharding of each array of `state`."""

    config: ModelConfig
    state: State
    where: State
    frozen: Frozen | None


def initial_state(
    init: Path, stage: Stage, optimizer: optax.GradientTransformation, mesh: Mesh, teacher: ModelConfig | None = None
) -> Start:
    """A model's weights, or adapters on them, with a fresh optimiser, and where each array lies.

    teacher: whose hidden states are matched, if the stage does that.
    """
    whole = stage.lora is None
    config, params = load_weights(init, mesh=mesh, dtype="float32" if whole else None, scanned=True)
    where = param_shardings(config, params, mesh)
    params, frozen = jax.device_put(params, where), None
    if not whole:
        frozen = Frozen(params, stage.lora.alpha / stage.lora.rank)
        where = adapter_shardings(config, stage.lora, mesh)
        params = jax.jit(lambda: make_adapters(config, stage.lora, stage.seed), out_shardings=where)()
    if teacher is not None and stage.hidden_states:
        extra = make_projections(stage.hidden_states, config, teacher, stage.seed)
        everywhere = jax.tree.map(lambda _: replicated(mesh), extra)
        params = {**params, PROJECTIONS: jax.device_put(extra, everywhere)}
        where = {**where, PROJECTIONS: everywhere}
    moments = moment_shardings(optimizer, params, where, mesh)
    state = State(params, jax.jit(optimizer.init, out_shardings=moments)(params))
    return Start(config, state, State(where, moments), frozen)


def moment_shardings(
    optimizer: optax.GradientTransformation, params: decoder.Params, where: decoder.Params, mesh: Mesh
) -> Any:
    """Where the optimiser's arrays lie: beside their weights where they have their shape, else everywhere.

    Left to itself, jit puts the moments of sharded weights on one device.
    """
    return optax.tree_map_params(
        optimizer,
        lambda moment, weight, sharding: sharding if moment.shape == weight.shape else replicated(mesh),
        jax.eval_shape(optimizer.init, params),
        params,
        where,
        transform_non_params=lambda _: replicated(mesh),
    )


def param_shardings(config: ModelConfig, params: decoder.Params, mesh: Mesh) -> decoder.Params:
    """The sharding of every weight of a scanned tree."""
    axes = decoder.weight_axes(config)

    def name(path: str) -> str:
        """`stacks.1.ffn.up` → the axes of that weight in the stack's first layer."""
        if not path.startswith("stacks."):
            return axes[path]
        _, stack, rest = path.split(".", 2)
        return axes[f"layers.{config.stacks[int(stack)][0]}.{rest}"]

    def where(path: str, leaf: Any) -> Any:
        """Of a weight, or of the two parts of one in eight bits."""
        return jax.tree.map(lambda array: weight_sharding(mesh, name(path), array.shape), leaf)

    return nest({path: where(path, leaf) for path, leaf in flat(params).items()})
