"""What a run would do, counted before it does it."""

from pathlib import Path
from typing import Any

from distill.config import Recipe
from distill.files import read_json


def plan(recipe: Recipe, index: Path) -> dict[str, Any]:
    """`plan.json`: what the recipe asks for, and once `index` is there, what the dataset gives.

    A count that only the dataset can tell is null until then.
    """
    asked, size = recipe.prompts.num_batches, recipe.prompts.batch_size
    known = read_json(index)["batches"] if index.exists() else None
    if known is not None:
        batches, prompts = len(known), sum(batch["kept"] for batch in known.values())
    else:
        batches, prompts = (None, None) if asked == "all" else (asked, asked * size)
    samples = None if prompts is None else prompts * recipe.generation.num_generations
    return {
        "schema": 1,
        "run": recipe.run,
        "teacher": recipe.models[recipe.teacher].source,
        "student": recipe.models[recipe.student].source,
        "indexed": known is not None,
        "batches": batches,
        "prompts": prompts,
        "samples_a_prompt": recipe.generation.num_generations,
        "samples": samples,
        "stages": {name: {"init": stage.init, "data": stage.data_in_words} for name, stage in recipe.stages.items()},
        "folder": str(recipe.folder),
    }


def table(counted: dict[str, Any]) -> str:
    """A plan as lines for the terminal."""
    unknown = "all that the dataset has" if not counted["indexed"] else "none"
    bound = "" if counted["indexed"] else "at most "

    def count(number: int | None) -> str:
        return unknown if number is None else f"{bound}{number:,}"

    rows = [
        ("run", f"{counted['run']} in {counted['folder']}"),
        ("teacher", counted["teacher"]),
        ("student", counted["student"]),
        ("batches", count(counted["batches"])),
        ("prompts", count(counted["prompts"])),
        ("samples", f"{count(counted['samples'])} ({counted['samples_a_prompt']} a prompt)"),
        *((f"stage {name}", f"from {stage['init']}, on {stage['data']} answers")
          for name, stage in counted["stages"].items()),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)
