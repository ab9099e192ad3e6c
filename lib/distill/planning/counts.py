"""Batches, prompts, samples and tokens: what the recipe asks for, and what the dataset gives once it is read."""

from pathlib import Path
from typing import NamedTuple

from distill.config.recipe import Recipe
from distill.config.stages import Stage
from distill.data.loader import row_length
from distill.files import read_json

FILL = 0.99
"""Share of a packed row that holds examples (tests/data/test_packing.py)."""


class Counts(NamedTuple):
    """A number that only the dataset can tell is None until `indexed`, and a bound where `num_batches` gives one."""

    indexed: bool
    batches: int | None
    prompts: int | None
    samples: int | None
    prompt_tokens: int
    """A prompt's: what the recipe's plan says, or the most that it may have. So are those of a completion."""
    completion_tokens: int


class Steps(NamedTuple):
    """How far a stage goes: positions are rows times their length, padding included."""

    steps: int | None
    length: int
    positions: int | None


def count(recipe: Recipe, index: Path) -> Counts:
    """index: prompts/index.json, if it is there."""
    if recipe.prompts is None:
        return Counts(True, 0, 0, 0, 0, 0)
    asked, size, generation = recipe.prompts.num_batches, recipe.prompts.batch_size, recipe.generation
    known = read_json(index)["batches"] if index.exists() else None
    if known is not None:
        batches, prompts = len(known), sum(batch["kept"] for batch in known.values())
    else:
        batches, prompts = (None, None) if asked == "all" else (asked, asked * size)
        if recipe.prompts.turns == "each_own":  # a batch has so many conversations, of who knows how many turns
            prompts = None
    samples = None if prompts is None else prompts * generation.num_generations
    prompt = min(recipe.plan.prompt_tokens or generation.max_prefill_length, generation.max_prefill_length)
    room = generation.max_target_length - prompt
    completion = min(recipe.plan.completion_tokens or room, room)
    return Counts(known is not None, batches, prompts, samples, prompt, completion)


def stage_steps(recipe: Recipe, stage: Stage, counts: Counts) -> Steps:
    """Steps that are given, or what the epochs come to if every sample is kept and every example has the mean length.

    None where a published dataset's rows are told neither by the stage nor by `plan.rows`.
    """
    longest = stage.max_length or recipe.generation.max_target_length
    length = row_length(longest)
    steps = stage.steps
    if steps is None:
        rows = _rows(recipe, stage, counts, longest, length)
        steps = None if rows is None else -(-int(stage.epochs * rows) // stage.batch_size)
    return Steps(steps, length, None if steps is None else steps * stage.batch_size * length)


def _rows(recipe: Recipe, stage: Stage, counts: Counts, longest: int, length: int) -> int | None:
    """Rows of an epoch, of all sources together."""
    generated = min(counts.prompt_tokens + counts.completion_tokens, longest)
    other = min(recipe.plan.original_tokens or longest, longest)
    known = {"generated": (counts.samples, generated), "original": (counts.prompts, other)}
    rows = 0
    for part in stage.data:
        examples, tokens = known.get(part.source) or (recipe.plan.rows.get(part.source), other)
        if examples is None:
            return None
        rows += max(1, round(examples * tokens / (length * FILL))) if stage.packing else examples
    return rows
