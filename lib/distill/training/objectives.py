"""What a stage minimises: one small function an objective, which says what `chunked_sums` is to add up."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from distill.config import NUMBERS, Schedule, Stage
from distill.training.losses import Constants, Parts, Sums, TokenLoss, token_sums

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


def objective_of(stage: Stage, batch: Batch, numbers: Numbers) -> Objective:
    """The stage's objective on a batch, or some rows of it. numbers: of `scheduled`, for the step that is made."""
    return OBJECTIVES[stage.objective](stage, batch, numbers)


def sft(stage: Stage, batch: Batch, numbers: Numbers) -> Objective:
    """Mean NLL of what is written in the data."""

    def loss(logits: jax.Array, parts: Parts, constants: Constants) -> Sums:
        return token_sums(logits, parts["targets"], parts["mask"], stage.z_loss)

    return Objective(loss, {name: batch[name] for name in ("targets", "mask")}, {})


OBJECTIVES: dict[str, Callable[..., Objective]] = {"sft": sft}


def scheduled(stage: Stage, step: int, steps: int) -> dict[str, float]:
    """The numbers that the objective takes at a step, the first of which is 1 of `steps`."""
    return {name: Schedule.of(getattr(stage, name)).at(step, steps) for name in NUMBERS[stage.objective]}
