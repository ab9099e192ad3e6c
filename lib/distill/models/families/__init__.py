"""The families: each is its configuration both ways and its weight table; the decoder is one for all."""

from typing import Any

from distill.errors import DistillError
from distill.models.config import ModelConfig
from distill.models.families.common import Family, HfConfig
from distill.models.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from distill.models.families.gemma import GEMMA2, GEMMA3
from distill.models.families.llama import LLAMA
from distill.models.families.mistral import MISTRAL, MIXTRAL
from distill.models.families.phi import PHI3
from distill.models.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from distill.models.table import Row

ALL = (
    LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, GEMMA2, GEMMA3, PHI3, DEEPSEEK_V2, DEEPSEEK_V3,
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.name: family for family in ALL}
ARCHITECTURES: dict[str, Family] = {family.architecture: family for family in ALL}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """The architecture that a `config.json` describes; one that is not supported is refused by name."""
    named = values.get("architectures") or []
    family = next((ARCHITECTURES[name] for name in named if name in ARCHITECTURES), None)
    if family is None:
        what = ", ".join(named) or "none named"
        raise DistillError(f"architecture not supported: {what}; supported are {', '.join(ARCHITECTURES)}")
    config = family.from_hf(HfConfig(values))
    if fault := _fault(config):
        raise DistillError(f"config.json contradicts itself: {fault}")
    return config


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json` that the architecture decides."""
    family = FAMILIES[config.family]
    return {"architectures": [family.architecture], "model_type": family.name} | family.to_hf(config)


def weight_rows(config: ModelConfig) -> list[Row]:
    """The weight table of the model's family."""
    return FAMILIES[config.family].rows(config)


def left_out(values: dict[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """What the names of tensors begin with that a checkpoint of this `config.json` has and the model does not."""
    return FAMILIES[config.family].left_out(HfConfig(values))


def _fault(config: ModelConfig) -> str | None:
    """What cannot be true of any model of this configuration."""
    experts = config.experts
    if not config.layers:
        return "no layers"
    if empty := [name for name, size in config.sizes.items() if size < 1 and name not in "QY"]:
        return f"axes {', '.join(empty)} are empty"
    if config.heads % config.kv_heads:
        return f"{config.heads} query heads cannot share {config.kv_heads} key/value heads"
    for rope in config.ropes:
        factors = [rope.scaling.short, rope.scaling.long] if rope.scaling else []
        if rope.width % 2 or rope.width > config.head_dim:
            return f"{rope.width} of {config.head_dim} head widths cannot be rotated in pairs"
        if any(len(part) not in (0, rope.width // 2) for part in factors):
            return f"{' and '.join(str(len(part)) for part in factors)} factors for {rope.width // 2} pairs"
    if any(layer.window is not None and layer.window < 1 for layer in config.layers):
        return "a window of no positions"
    if experts and (experts.count % experts.groups or experts.top_groups > experts.groups):
        return f"{experts.count} experts in {experts.groups} groups, of which {experts.top_groups} are taken"
    if experts and experts.per_token > experts.top_groups * experts.count // experts.groups:
        return f"a token asks {experts.per_token} experts, and there are fewer to ask"
    return None
