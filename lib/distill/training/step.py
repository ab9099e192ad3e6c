"""One training step, pure: `state, metrics = step(state, batch)`."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from distill.config import Stage
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.models.lora import Adapters
from distill.parallel.mesh import batch_sharding, replicated
from distill.training.losses import Sums, chunked_sums
from distill.training.state import Frozen, State

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def sft_sums(
    config: ModelConfig,
    params: decoder.Params,
    batch: Batch,
    stage: Stage,
    *,
    frozen: Frozen | None = None,
    mesh: Mesh | None = None,
) -> tuple[Sums, jax.Array]:
    """Sums over the completions' tokens, and over all real tokens of how unevenly their row asks its experts.

    params: the weights; or with `frozen` weights the adapters on them.
    """
    weights, adapters = (params, None) if frozen is None else (frozen.weights, Adapters(params, frozen.scale))
    inputs = batch["tokens"], batch["segment_ids"], batch["positions"]
    as_they_are = stage.dtype == "float32" and frozen is None  # learned weights are float32, frozen ones any type
    dtype = None if as_they_are else jnp.dtype(stage.dtype)
    hidden, uneven = decoder.forward_with_balance(
        config, weights, *inputs, remat=stage.remat, mesh=mesh, dtype=dtype, adapters=adapters,
        balanced=stage.balance_loss > 0,
    )  # fmt: skip

    def score(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return decoder.scores(config, hidden, head.astype(hidden.dtype))

    head = weights["embed"] if config.tied else weights["head"]
    sums = chunked_sums(score, hidden, head, batch["targets"], batch["mask"], stage.z_loss)
    return sums, jnp.sum(uneven * jnp.sum(batch["segment_ids"] > 0, axis=1))


def mean_loss(
    config: ModelConfig,
    params: decoder.Params,
    batch: Batch,
    stage: Stage,
    *,
    whole: Batch | None = None,
    frozen: Frozen | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """What a step minimises, and its parts: NLL (nats) and share of right tokens, means over the completions' tokens.

    whole: the global batch that `batch` is some rows of, by whose number of tokens it is divided: over its parts
    the losses, metrics and gradients add up to those of the whole, however it is split.
    """
    whole = batch if whole is None else whole
    tokens = jnp.maximum(jnp.sum(whole["mask"]), 1.0)
    sums, uneven = sft_sums(config, params, batch, stage, frozen=frozen, mesh=mesh)
    loss, metrics = sums.loss / tokens, {"loss": sums.nll / tokens, "accuracy": sums.correct / tokens}
    if stage.balance_loss:
        metrics["balance"] = uneven / jnp.maximum(jnp.sum(whole["segment_ids"] > 0), 1)
        loss = loss + stage.balance_loss * metrics["balance"]
    return loss, metrics


def gradient(
    config: ModelConfig,
    params: decoder.Params,
    batch: Batch,
    stage: Stage,
    *,
    frozen: Frozen | None = None,
    mesh: Mesh | None = None,
) -> tuple[decoder.Params, Metrics]:
    """Gradient of `mean_loss` and its metrics, `micro_batch_size` rows at a time."""

    def one(part: Batch) -> tuple[decoder.Params, Metrics]:
        loss = lambda params: mean_loss(config, params, part, stage, whole=batch, frozen=frozen, mesh=mesh)  # noqa: E731
        return jax.grad(loss, has_aux=True)(params)

    parts = batch["tokens"].shape[0] // (stage.micro_batch_size or batch["tokens"].shape[0])
    if parts == 1:
        return one(batch)

    def cut(x: jax.Array) -> jax.Array:
        """Part i has rows i, i + parts, i + 2 parts, ...: each device's own rows, so none travels."""
        return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    stacked = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], stacked))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, nothing, stacked)[0]


@dataclass(frozen=True)
class Step:
    """The compiled step, and the frozen weights that it is always given."""

    compiled: jax.stages.Wrapped
    weights: decoder.Params

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        return self.compiled(state, self.weights, batch)

    def lower(self, state: State, batch: Batch) -> jax.stages.Lowered:
        """The step on shapes alone, for a plan."""
        return self.compiled.lower(state, self.weights, batch)


def make_step(
    config: ModelConfig,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    where: State,
    frozen: Frozen | None = None,
) -> Step:
    """The compiled step; the old state's memory is given to the new one."""

    def step(state: State, weights: decoder.Params, batch: Batch) -> tuple[State, Metrics]:
        fixed = None if frozen is None else frozen._replace(weights=weights)
        slope, metrics = gradient(config, state.params, batch, stage, frozen=fixed, mesh=mesh)
        updates, moments = optimizer.update(slope, state.optimizer, state.params)
        metrics |= {"grad_norm": optax.tree.norm(slope), "useful": jnp.mean(batch["segment_ids"] > 0)}
        return State(optax.apply_updates(state.params, updates), moments), metrics

    weights = {} if frozen is None else frozen.weights
    compiled = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(where, jax.tree.map(lambda leaf: leaf.sharding, weights), batch_sharding(mesh)),
        out_shardings=(where, replicated(mesh)),
    )
    return Step(compiled, weights)
