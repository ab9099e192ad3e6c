"""Llama 2, 3, 3.1, 3.2, 3.3, and what shares its shape, such as SmolLM2."""

from typing import Any

from distill.models.config import ModelConfig
from distill.models.families.common import (
    Family,
    HfConfig,
    base_from_hf,
    base_rows,
    base_to_hf,
    rope_from_hf,
    rope_to_hf,
)


def _from_hf(hf: HfConfig) -> ModelConfig:
    base, bias = base_from_hf(hf), hf.bool("attention_bias", False)
    return ModelConfig(
        family="llama",
        **base,
        ropes=(rope_from_hf(hf, base["head_dim"]),),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=hf.bool("mlp_bias", False),
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return base_to_hf(config) | {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rope_parameters": rope_to_hf(config.ropes[0]),
    }


LLAMA = Family("llama", "LlamaForCausalLM", _from_hf, _to_hf, lambda config: base_rows())
