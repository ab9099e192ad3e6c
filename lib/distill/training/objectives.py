"""What a stage minimises: one small function an objective, which says what `chunked_sums` is to add up."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill.config.stages import NUMBERS, Stage
from distill.config.training import Schedule
from distill.training.aligned import apart, chains, told
from distill.training.divergences import divergence_of, log_probs
from distill.training.losses import (
    Constants,
    Parts,
    Score,
    Sums,
    TokenLoss,
    masked_sum,
    positions_at_once,
    token_sums,
)
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


class Own(NamedTuple):
    """The student's hidden states [B, T, D] and head, for an objective that must look ahead of a chunk."""

    score: Score
    hidden: jax.Array
    head: jax.Array


def objective_of(
    stage: Stage, batch: Batch, numbers: Numbers, view: View | None = None, own: Own | None = None
) -> Objective:
    """The stage's objective on a batch, or some rows of it.

    numbers: of `scheduled`, for the step that is made. view: the teacher's, for the objectives that ask it.
    """
    return OBJECTIVES[stage.objective](stage, batch, numbers, view, own)


def sft(stage: Stage, batch: Batch, numbers: Numbers, view: View | None, own: Own | None) -> Objective:
    """Mean NLL of what is written in the data."""

    def loss(logits: jax.Array, parts: Parts, constants: Constants) -> Sums:
        return token_sums(logits, parts["targets"], parts["mask"], stage.z_loss)

    return Objective(loss, {name: batch[name] for name in ("targets", "mask")}, {})


def logits(stage: Stage, batch: Batch, numbers: Numbers, view: View, own: Own | None) -> Objective:
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
        soft = given["temperature"] ** 2 * divergence
        return sums._replace(loss=_mixed(soft, sums.loss, given["alpha"]), divergence=divergence)

    parts = {"targets": batch["targets"], "mask": batch["mask"], "teacher": view.hidden}
    return Objective(loss, parts, {"head": view.head, "numbers": numbers})


def topk_logits(stage: Stage, batch: Batch, numbers: Numbers, view: View | None, own: Own | None) -> Objective:
    """α KL(teacher, student) + (1 − α) NLL, of the logits that a teacher stored with its tokens."""
    fixed = {name: getattr(stage, name) for name in NUMBERS[stage.objective] if name not in numbers}

    def loss(logits: jax.Array, parts: Parts, constants: Constants) -> Sums:
        alpha = (fixed | constants["numbers"])["alpha"]
        real = jnp.arange(logits.shape[-1])[None, None] < constants["vocabulary"]
        rows = (parts[name] for name in ("targets", "mask", "soft_ids", "soft_logprobs"))
        return stored_sums(jnp.where(real, logits, -jnp.inf), *rows, stage.estimator, alpha, stage.z_loss)

    parts = {name: batch[name] for name in ("targets", "mask", "soft_ids", "soft_logprobs")}
    return Objective(loss, parts, {"vocabulary": batch["soft_vocabulary"][0], "numbers": numbers})


def aligned_logits(stage: Stage, batch: Batch, numbers: Numbers, view: View, own: Own) -> Objective:
    """α T² Σ D(teacher, student) + (1 − α) NLL, with a D for each span of equal text (training/aligned.py).

    A span's probability is a product over tokens that may lie in different chunks: it is computed first.
    """
    fixed = {name: getattr(stage, name) for name in NUMBERS[stage.objective] if name not in numbers}
    score, (theirs, ours, _) = view.score, view.shared
    chunk = positions_at_once(len(batch["mask"]), max(len(view.head), len(own.head)))
    temperature, into = (fixed | numbers)["temperature"], batch["span"]
    told_of = {
        "teacher": chains(score, view.hidden, view.head, batch["teacher_targets"], batch["teacher_span"], theirs,
                          temperature, into, chunk),
        "student": chains(*own, batch["targets"], into, ours, temperature, into, chunk),
    }  # fmt: skip

    def loss(logits: jax.Array, parts: Parts, constants: Constants) -> Sums:
        given, mask = fixed | constants["numbers"], parts["mask"]
        sums = token_sums(logits, parts["targets"], mask, stage.z_loss)
        hidden = jnp.where(parts["span_begins"][..., None] > 0, parts["teacher"], 0)
        p = told(score(hidden, constants["head"]), theirs, given["temperature"])
        q = told(logits, ours, given["temperature"])
        divergence = divergence_of(stage.divergence, given["beta"], stage.skew)
        value, slope = (masked_sum(part, mask)[0] for part in apart(p, q, parts, ours, divergence))
        soft = given["temperature"] ** 2 * (value + slope)
        return sums._replace(loss=_mixed(soft, sums.loss, given["alpha"]), divergence=value)

    parts = {name: batch[name] for name in ("targets", "mask", "span_kind", "span_begins")}
    parts["teacher"] = jnp.take_along_axis(view.hidden, batch["teacher_at"][..., None], axis=1)
    for side, chain in told_of.items():
        parts |= {f"{side}_chain": chain.own, f"{side}_alike": chain.alike}
    return Objective(loss, parts, {"head": view.head, "numbers": numbers})


def _mixed(soft: jax.Array, plain: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """α soft + (1 − α) plain; for an α that is always 1 no gradient of `plain` is computed to be dropped."""
    return soft if isinstance(alpha, float) and alpha == 1.0 else alpha * soft + (1 - alpha) * plain


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "sft": sft,
    "logits": logits,
    "on_policy": logits,
    "topk_logits": topk_logits,
    "aligned_logits": aligned_logits,
}


def scheduled(stage: Stage, step: int, steps: int) -> Numbers:
    """Those of the objective's numbers that change from step to step, at a step, the first of which is 1.

    on_policy has all: for the student's own batches α is 1.
    """
    values = {name: getattr(stage, name) for name in NUMBERS[stage.objective]}
    changing = {k: v for k, v in values.items() if isinstance(v, Schedule) or stage.objective == "on_policy"}
    return {name: Schedule.of(value).at(step, steps) for name, value in changing.items()}
