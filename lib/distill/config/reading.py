"""YAML becomes a recipe, or one error that tells all that is wrong with it."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distill.config.recipe import Recipe
from distill.config.settings import did_you_mean
from distill.errors import DistillError


def load_recipe(values: dict[str, Any]) -> Recipe:
    """Check a recipe that YAML gave as a dictionary; all that is wrong is in one `DistillError`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise DistillError("; ".join(_explain(fault) for fault in error.errors())) from None


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistillError(f"recipe {path} does not exist") from None
    except yaml.YAMLError as error:
        raise DistillError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DistillError(f"recipe {path} is not a mapping: see config.yaml for the shape")
    return load_recipe(values)


def _explain(fault: dict[str, Any]) -> str:
    """One pydantic fault in the house's form: path, value, remedy."""
    path = [str(part) for part in fault["loc"]]
    where = ".".join(path) or "recipe"
    if fault["type"] == "extra_forbidden":
        return f"{where} is not a setting{did_you_mean(path[-1], _fields_at(path[:-1]))}"
    if fault["type"] == "missing":
        return f"{where} is missing: the recipe must give it"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message if where == "recipe" else f"{where}: {message}"
    return f"{where} is {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(path: list[str]) -> list[str]:
    """Names of the settings below a path, for the nearest known one."""
    kind: Any = Recipe
    for part in path:
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)) or part not in kind.model_fields:
            continue  # a name of the user's own in models or stages
        kind = _settings_in(kind.model_fields[part].annotation) or kind
    return list(kind.model_fields)


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _settings_in(part):
            return found
    return None
