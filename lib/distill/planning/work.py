"""Floating-point operations of a run, and its hours at the utilisation that the recipe's plan states."""

from typing import NamedTuple

from distill.config.recipe import Recipe
from distill.config.results import Plan
from distill.planning.counts import Counts, Steps
from distill.planning.devices import Machine
from distill.planning.models import Known
from distill.training.speed import token_operations


class Work(NamedTuple):
    """hours: None where the count, the peak or the bandwidth is not known."""

    operations: float | None
    hours: float | None


def training_work(
    known: Known, steps: Steps, plan: Plan, machine: Machine, *, frozen: bool, asked: Known | None = None
) -> Work:
    """Forward and backward over all positions, forward for a teacher that is asked; what `remat` computes again is
    part of the utilisation, as in MFU."""
    if steps.positions is None:
        return Work(None, None)
    operations = steps.positions * token_operations(known.config, steps.length, backward=1 if frozen else 2)
    if asked:
        operations += steps.positions * token_operations(asked.config, steps.length, backward=0)
    return Work(operations, _hours(operations, machine, plan.mfu))


def generation_work(recipe: Recipe, known: Known, counts: Counts, machine: Machine, held: int) -> Work:
    """Prompts are read at the training's utilisation; decoding moves all weights and caches through each step.

    held: bytes of parameters and cache on one device, all of which a step reads. It gives `slots` tokens.
    """
    if counts.samples is None:
        return Work(None, None)
    settings, plan = recipe.generation, recipe.plan
    length = counts.prompt_tokens + counts.completion_tokens
    token = token_operations(known.config, length, backward=0)
    read, written = counts.prompts * counts.prompt_tokens, counts.samples * counts.completion_tokens
    ours = machine._replace(devices=_devices(recipe))
    reading = _hours(read * token, ours, plan.mfu)
    if reading is None or machine.bandwidth is None:
        return Work((read + written) * token, None)
    by_memory = written / settings.slots * held / (machine.bandwidth * plan.bandwidth_use) / 3600
    by_arithmetic = _hours(written * token, ours, plan.mfu)
    return Work((read + written) * token, reading + max(by_memory, by_arithmetic))


def _devices(recipe: Recipe) -> int:
    """How many generate: the engine's mesh, whatever the machine has."""
    mesh = recipe.generation.mesh
    return mesh.data * mesh.expert * mesh.tensor


def _hours(operations: float, machine: Machine, mfu: float) -> float | None:
    return None if machine.peak is None else operations / (machine.peak * machine.devices * mfu) / 3600
