"""The families: each is its configuration both ways and its weight table; the decoder is one for all."""

from types import ModuleType
from typing import Any

from distill.errors import DistillError
from distill.models.config import ModelConfig
from distill.models.families import llama
from distill.models.families.common import HfConfig
from distill.models.table import Row

FAMILIES: dict[str, ModuleType] = {"llama": llama}
ARCHITECTURES = {name: family for family in FAMILIES.values() for name in family.ARCHITECTURES}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """The architecture that a `config.json` describes; one that is not supported is refused by name."""
    named = values.get("architectures") or []
    family = next((ARCHITECTURES[name] for name in named if name in ARCHITECTURES), None)
    if family is None:
        what = ", ".join(named) or "none named"
        raise DistillError(f"architecture not supported: {what}; supported are {', '.join(ARCHITECTURES)}")
    return family.from_hf(HfConfig(values))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json` that the architecture decides."""
    return FAMILIES[config.family].to_hf(config)


def weight_rows(config: ModelConfig) -> list[Row]:
    """The weight table of the model's family."""
    return FAMILIES[config.family].rows(config)
