"""The recipe's models by their configuration alone."""

import math
from pathlib import Path
from typing import NamedTuple

from distill.checkpoints.info import read_info
from distill.config.models import Model
from distill.config.recipe import Recipe
from distill.errors import DistillError
from distill.files import read_json
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.models.families import config_from_hf

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Known(NamedTuple):
    """A model's architecture, and the bytes of a weight at its source and where it is imported."""

    config: ModelConfig
    parameters: int
    source_bytes: int
    stored: str


def known_models(recipe: Recipe, configs: dict[str, Path | None]) -> dict[str, Known]:
    """configs: the file that tells of each model, config.json or model.json; of those without one nothing is known."""
    return {name: _read(recipe.models[name], name, file) for name, file in configs.items() if file is not None}


def model_of(recipe: Recipe, name: str) -> str:
    """The model that a stage starts from, by way of the stages before it; a model is itself."""
    return recipe.stages[recipe.lineage(name)[-1]].init if name in recipe.stages else name


def parameters(config: ModelConfig) -> int:
    """How many numbers its weights are."""
    shapes = decoder.weight_axes(config).values()
    return sum(math.prod(config.sizes[axis] for axis in axes.split()) for axes in shapes)


def _read(model: Model, name: str, file: Path) -> Known:
    if file.name == "model.json":
        info = read_info(file.parent)
        return Known(info.architecture, info.parameters, BYTES[info.dtype], info.dtype)
    values = read_json(file)
    try:
        config = config_from_hf(values)
    except DistillError as error:
        raise DistillError(f"models.{name}: {file}: {error}") from None
    theirs = values.get("dtype") or values.get("torch_dtype") or model.dtype
    return Known(config, parameters(config), BYTES.get(theirs, 4), model.dtype)
