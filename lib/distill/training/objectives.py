"""What a stage minimises: one small function an objective, which says what `chunked_sums` is to add up."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill.config import NUMBERS, Schedule, Stage
from distill.training.divergences import divergence_of, log_probs
from distill.training.losses import Constants, Parts, Sums, TokenLoss, masked_sum, token_sums
from distill.training.stored_logits import stored_sums
from distill.training.teacher import View

Batch = dict[str, jax.Array]
Numbers = dict[str, jax.Array | float]


class Objective(NamedTuple):
    """loss(logits, parts, constants) gives `Sums` over a few positions.

    parts: arrays [B, T, ...] that are cut along T, `mask` among them; constants: seen whole by each chunk. Neither
    gets a gradient. Traced values must come in by these two; `loss` may close over settings only.
    """

    loss: TokenLoss
    parts: Parts
    constants: Constants


def objective_of(stage: Stage, batch: Batch, numbers: Numbers, view: View | None = None) -> Objective:
    """The stage's objective on a batch, or some rows of it.

    numbers: of `scheduled`, for the step that is made. view: the teacher's, for the objectives that ask it.
    """
    return OBJECTIVES[stage.objective](stage, batch, numbers, view)


def sft(stage: Stage, batch: Batch, numbers: Numbers, view: View | None) -> Objective:
    """Mean NLL of what is written in the data."""

    def loss(logits: jax.Array, parts: Parts, constants: Constants) -> Sums:
        return token_sums(logits, parts["targets"], parts["mask"], stage.z_loss)

    return Objective(loss, {name: batch[name] for name in ("targets", "mask")}, {})


def logits(stage: Stage, batch: Batch, numbers: Numbers, view: View) -> Objective:
    """α T² D(teacher, student) + (1 − α) NLL, at temperature T (arXiv 1503.02531), over the tokens that both have.

    The teacher's scores are made of its hidden states a chunk at a time, as the student's are.
    """
    fixed = {name: getattr(stage, name) for name in NUMBERS[stage.objective] if name not in numbers}
    score, real = view.score, view.real_vocab  # no traced value may come into `loss` but by its arguments

    def loss(logits: jax.Array, parts: Parts, constants: Constants) -> Sums:
        given, mask = fixed | constants["numbers"], parts["mask"]
        sums = token_sums(logits, parts["targets"], mask, stage.z_loss)
        # Under the mask may be anything, and 0 · NaN in a gradient is NaN.
        hidden = jnp.where(mask[..., None] > 0, parts["teacher"], 0)
        teacher = score(hidden, constants["head"])
        p, q = (log_probs(side, given["temperature"], real) for side in (teacher, logits))
        apart = divergence_of(stage.divergence, given["beta"], stage.skew)(p, q)
        divergence = masked_sum(apart, mask)[0]
        soft, alpha = given["temperature"] ** 2 * divergence, given["alpha"]
        whole = isinstance(alpha, float) and alpha == 1.0  # else the gradient of NLL would be computed to be dropped
        return sums._replace(loss=soft if whole else alpha * soft + (1 - alpha) * sums.loss, divergence=divergence)

    parts = {"targets": batch["targets"], "mask": batch["mask"], "teacher": view.hidden}
    return Objective(loss, parts, {"head": view.head, "numbers": numbers})


def topk_logits(stage: Stage, batch: Batch, numbers: Numbers, view: View | None) -> Objective:
    """α KL(teacher, student) + (1 − α) NLL, of the logits that a teacher stored with its tokens."""
    fixed = {name: getattr(stage, name) for name in NUMBERS[stage.objective] if name not in numbers}

    def loss(logits: jax.Array, parts: Parts, constants: Constants) -> Sums:
        alpha = (fixed | constants["numbers"])["alpha"]
        real = jnp.arange(logits.shape[-1])[None, None] < constants["vocabulary"]
        rows = (parts[name] for name in ("targets", "mask", "soft_ids", "soft_logprobs"))
        return stored_sums(jnp.where(real, logits, -jnp.inf), *rows, stage.estimator, alpha, stage.z_loss)

    parts = {name: batch[name] for name in ("targets", "mask", "soft_ids", "soft_logprobs")}
    return Objective(loss, parts, {"vocabulary": batch["soft_vocabulary"][0], "numbers": numbers})


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "sft": sft,
    "logits": logits,
    "on_policy": logits,
    "topk_logits": topk_logits,
}


def scheduled(stage: Stage, step: int, steps: int) -> Numbers:
    """Those of the objective's numbers that change from step to step, at a step, the first of which is 1.

    on_policy has all: for the student's own batches α is 1.
    """
    values = {name: getattr(stage, name) for name in NUMBERS[stage.objective]}
    changing = {k: v for k, v in values.items() if isinstance(v, Schedule) or stage.objective == "on_policy"}
    return {name: Schedule.of(value).at(step, steps) for name, value in changing.items()}
