"""One training step, pure: `state, metrics = step(state, batch)`."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from distill.config.stages import Stage
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.models.lora import Adapters
from distill.parallel.mesh import batch_sharding, replicated
from distill.training.hidden_states import PROJECTIONS, apart, pairs, student_of
from distill.training.losses import Sums, chunked_sums, positions_at_once
from distill.training.objectives import Batch, Numbers, Own, objective_of
from distill.training.state import Frozen, State
from distill.training.teacher import Teacher, view

Metrics = dict[str, jax.Array]


def batch_sums(
    config: ModelConfig,
    params: decoder.Params,
    batch: Batch,
    stage: Stage,
    numbers: Numbers | None = None,
    *,
    frozen: Frozen | None = None,
    teacher: Teacher | None = None,
    mesh: Mesh | None = None,
) -> tuple[Sums, jax.Array]:
    """Sums over the completions' tokens, and over all real tokens of how unevenly their row asks its experts.

    params: the weights, or with `frozen` weights the adapters on them; and projections of hidden states.
    numbers: see `objectives.scheduled`.
    """
    projections, params = params.get(PROJECTIONS, {}), student_of(params)
    weights, adapters = (params, None) if frozen is None else (frozen.weights, Adapters(params, frozen.scale))
    inputs = batch["tokens"], batch["segment_ids"], batch["positions"]
    as_they_are = stage.dtype == "float32" and frozen is None  # learned weights are float32, frozen ones any type
    dtype = None if as_they_are else jnp.dtype(stage.dtype)
    matched = stage.hidden_states if teacher is not None else None
    states: list | None = None if matched is None else []
    hidden, uneven = decoder.forward_with_balance(
        config, weights, *inputs, remat=stage.remat, mesh=mesh, dtype=dtype, adapters=adapters,
        balanced=stage.balance_loss > 0, states=states,
    )  # fmt: skip

    def score(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return decoder.scores(config, hidden, head.astype(hidden.dtype))

    seen = None if teacher is None else view(teacher, batch, mesh, layers=matched is not None)
    head = weights["embed"] if config.tied else weights["head"]
    loss, parts, constants = objective_of(stage, batch, numbers or {}, seen, Own(score, hidden, head))
    largest = max(len(head), 0 if seen is None else len(seen.head))
    chunk = positions_at_once(len(hidden), largest)
    sums = chunked_sums(score, loss, hidden, head, parts, constants, chunk)
    if matched is not None:
        layers = pairs(matched, config, teacher.config)
        far = apart(matched, layers, jnp.concatenate(states), seen.states, projections, batch["mask"])
        sums = sums._replace(loss=sums.loss + matched.weight * far, hidden=far)
    return sums, jnp.sum(uneven * jnp.sum(batch["segment_ids"] > 0, axis=1))


def mean_loss(
    config: ModelConfig,
    params: decoder.Params,
    batch: Batch,
    stage: Stage,
    numbers: Numbers | None = None,
    *,
    whole: Batch | None = None,
    frozen: Frozen | None = None,
    teacher: Teacher | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """What a step minimises, and its parts as means over the completions' tokens.

    Parts: `loss`, for sft the NLL (nats), else what is minimised, with `nll` and `divergence` (nats) beside it;
    `accuracy`, the share of right tokens; `hidden`, how far matched hidden states are apart.

    whole: the global batch that `batch` is some rows of, by whose number of tokens it is divided: over its parts
    the losses, metrics and gradients add up to those of the whole, however it is split.
    """
    whole = batch if whole is None else whole
    tokens = jnp.maximum(jnp.sum(whole["mask"]), 1.0)
    sums, uneven = batch_sums(config, params, batch, stage, numbers, frozen=frozen, teacher=teacher, mesh=mesh)
    loss, metrics = sums.loss / tokens, {"loss": sums.nll / tokens, "accuracy": sums.correct / tokens}
    if sums.divergence is not None:
        metrics |= {"loss": loss, "nll": sums.nll / tokens, "divergence": sums.divergence / tokens}
    if sums.hidden is not None:
        metrics["hidden"] = sums.hidden / tokens
    if stage.balance_loss:
        metrics["balance"] = uneven / jnp.maximum(jnp.sum(whole["segment_ids"] > 0), 1)
        loss = loss + stage.balance_loss * metrics["balance"]
    return loss, metrics


def gradient(
    config: ModelConfig,
    params: decoder.Params,
    batch: Batch,
    stage: Stage,
    numbers: Numbers | None = None,
    *,
    frozen: Frozen | None = None,
    teacher: Teacher | None = None,
    mesh: Mesh | None = None,
) -> tuple[decoder.Params, Metrics]:
    """Gradient of `mean_loss` and its metrics, `micro_batch_size` rows at a time."""

    def one(part: Batch) -> tuple[decoder.Params, Metrics]:
        loss = lambda params: mean_loss(  # noqa: E731
            config, params, part, stage, numbers, whole=batch, frozen=frozen, teacher=teacher, mesh=mesh
        )
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


class Still(NamedTuple):
    """Weights that no step changes, as an argument of a compiled function: closed over, they would be constants."""

    frozen: decoder.Params
    teacher: decoder.Params

    @classmethod
    def of(cls, frozen: Frozen | None, teacher: Teacher | None) -> "Still":
        return cls(*({} if part is None else part.weights for part in (frozen, teacher)))

    def to(self, frozen: Frozen | None, teacher: Teacher | None) -> dict[str, Any]:
        """The two with these weights, by name."""
        sides = {"frozen": (frozen, self.frozen), "teacher": (teacher, self.teacher)}
        return {name: part and part._replace(weights=weights) for name, (part, weights) in sides.items()}


@dataclass(frozen=True)
class Step:
    """The compiled step, and the weights that it is always given."""

    compiled: jax.stages.Wrapped
    still: Still

    def __call__(self, state: State, batch: Batch, numbers: Numbers = MappingProxyType({})) -> tuple[State, Metrics]:
        return self.compiled(state, self.still, batch, dict(numbers))

    def lower(self, state: State, batch: Batch, numbers: Numbers = MappingProxyType({})) -> jax.stages.Lowered:
        """The step on shapes alone, for a plan."""
        return self.compiled.lower(state, self.still, batch, dict(numbers))


def make_step(
    config: ModelConfig,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    where: State,
    frozen: Frozen | None = None,
    teacher: Teacher | None = None,
) -> Step:
    """The compiled step; the old state's memory is given to the new one."""

    def step(state: State, still: Still, batch: Batch, numbers: Numbers) -> tuple[State, Metrics]:
        how = still.to(frozen, teacher)
        slope, metrics = gradient(config, state.params, batch, stage, numbers, **how, mesh=mesh)
        updates, moments = optimizer.update(slope, state.optimizer, state.params)
        metrics |= {"grad_norm": optax.tree.norm(slope), "useful": jnp.mean(batch["segment_ids"] > 0)}
        return State(optax.apply_updates(state.params, updates), moments), metrics

    still = Still.of(frozen, teacher)
    compiled = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(where, jax.tree.map(lambda leaf: leaf.sharding, still), batch_sharding(mesh), replicated(mesh)),
        out_shardings=(where, replicated(mesh)),
    )
    return Step(compiled, still)
