"""One training step, pure: `state, metrics = step(state, batch)`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from distill.models import decoder
from distill.models.config import ModelConfig
from distill.parallel.mesh import batch_sharding, replicated
from distill.training.losses import chunked_nll
from distill.training.state import State

Batch = dict[str, jax.Array]


def sft_loss(config: ModelConfig, params: decoder.Params, batch: Batch, mesh: Mesh | None = None) -> jax.Array:
    """Mean negative log-likelihood (nats) of the completions' tokens over the global batch."""
    inputs = batch["tokens"], batch["segment_ids"], batch["positions"]
    hidden = decoder.forward(config, params, *inputs, remat=True, mesh=mesh)
    head = params["embed"] if config.tied else params["head"]
    total = chunked_nll(partial(decoder.scores, config), hidden, head, batch["targets"], batch["mask"])
    return total / jnp.maximum(jnp.sum(batch["mask"]), 1.0)


def make_step(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, where: State
) -> Callable[[State, Batch], tuple[State, dict[str, Any]]]:
    """The compiled step; the old state's memory is given to the new one."""

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Any]]:
        value, gradient = jax.value_and_grad(lambda params: sft_loss(config, params, batch, mesh))(state.params)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
        return State(optax.apply_updates(state.params, updates), moments), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(where, batch_sharding(mesh)),
        out_shardings=(where, replicated(mesh)),
    )
