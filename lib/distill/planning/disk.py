"""What each target of a run takes on the disk."""

from collections.abc import Iterator
from typing import NamedTuple

from distill.config.recipe import Recipe
from distill.inputs import is_params
from distill.planning.counts import Counts
from distill.planning.models import BYTES, Known, model_of

PROMPT, COMPLETION, JOURNAL, DATASET = 12.0, 7.5, 30.0, 2.5
"""Bytes a token of prompts/ (JSON: messages and ids), completions/ (zstd), work/samples/ (JSON: text, ids, floats) and
dataset/ (zstd), on text of four characters a token; the zstd ones are what benchmarks/data.py came to."""


def logits_bytes(told: dict[str, int]) -> int:
    """A token's, of those of each kind that are told: an id and a half-precision number each, and their sum's."""
    return sum(4 * k + 4 for k in told.values() if k)


class Target(NamedTuple):
    """bytes: None where the dataset or a configuration must tell. Those not `kept` go when their work is done."""

    path: str
    files: int | None
    bytes: int | None
    kept: bool = True


def targets(recipe: Recipe, models: dict[str, Known], counts: Counts) -> list[Target]:
    """Every target of the run, and the work folders beside them."""
    return [*_models(recipe, models), *(_data(recipe, counts) if recipe.prompts else ()), *_students(recipe, models)]


def peak(found: list[Target]) -> int:
    """The most that lies on the disk at a time, at most: everything that is kept, and the largest of the rest."""
    passing = [target.bytes or 0 for target in found if not target.kept]
    return sum(target.bytes or 0 for target in found if target.kept) + max(passing, default=0)


def _models(recipe: Recipe, models: dict[str, Known]) -> Iterator[Target]:
    for name, model in recipe.models.items():
        folder, known = f"{recipe.results}/models/{name}-{model.id8}", models.get(name)
        if model.local is None:
            yield Target(f"{folder}/source", 1, known and known.parameters * known.source_bytes)
        if model.local is None or not is_params(model.local):
            yield Target(f"{folder}/params", 1, known and known.parameters * BYTES[known.stored])


def _data(recipe: Recipe, counts: Counts) -> Iterator[Target]:
    run, samples, prompts = recipe.folder, counts.samples, counts.prompts

    def size(number: int | None, tokens: int, a_token: float) -> int | None:
        return None if number is None else int(number * tokens * a_token)

    both = counts.prompt_tokens + counts.completion_tokens
    original = recipe.plan.original_tokens or 0  # the answers that prompts came with go along
    of_prompts = size(prompts, counts.prompt_tokens + original, PROMPT)
    yield Target(f"{run}/prompts", counts.batches, of_prompts)
    yield Target(f"{run}/work/prompts", counts.batches, of_prompts)
    generated = recipe.dataset.completions == "generated"
    logits = logits_bytes(recipe.generation.told) if generated else 0
    whole = None if samples is None else int(samples * (both * COMPLETION + counts.completion_tokens * logits))
    yield Target(f"{run}/completions", counts.batches, whole)
    if generated:  # in a journal packed bytes are base64
        journal = size(samples, counts.completion_tokens, JOURNAL + logits * 4 / 3)
        yield Target(f"{run}/work/samples", counts.batches, journal)
    if scored := logits_bytes(recipe.scored_logits):
        yield Target(f"{run}/logits", counts.batches, size(samples, counts.completion_tokens + original, scored))
    shards = None if samples is None else -(-samples // recipe.dataset.shard_rows)
    yield Target(f"{run}/dataset", shards, size(samples, both, DATASET))


def _students(recipe: Recipe, models: dict[str, Known]) -> Iterator[Target]:
    for name, stage in recipe.stages.items():
        known = models.get(model_of(recipe, name))
        weights = known and known.parameters * BYTES[known.stored]
        moments = {"adamw": 2, "lion": 1, "adafactor": 0}[stage.optimizer]
        whole = known and known.parameters * 4 * (1 + moments)
        steps = None if stage.lora or whole is None else whole * (stage.keep + 1 + (stage.select == "best"))
        yield Target(f"{recipe.folder}/students/{name}/steps", None, steps, kept=False)
        yield Target(f"{recipe.folder}/students/{name}/params", 1, weights)
        yield Target(f"{recipe.folder}/export/{name}", 1, weights)
