"""Mistral, which sees a window of the past (arXiv 2310.06825), and Mixtral, of experts (arXiv 2401.04088)."""

from typing import Any

from distill.models.config import Experts, Layer, ModelConfig
from distill.models.families.common import (
    THEIRS,
    Family,
    HfConfig,
    base_from_hf,
    base_rows,
    base_to_hf,
    expert_rows,
    rope_from_hf,
    rope_to_hf,
    window_to_hf,
)


def _from_hf(hf: HfConfig) -> ModelConfig:
    base = base_from_hf(hf)
    window = hf.int("sliding_window") if hf.get("sliding_window") else None
    base |= {"layers": (Layer(window=window),) * len(base["layers"])}
    return ModelConfig(family="mistral", **base, ropes=(rope_from_hf(hf, base["head_dim"]),))


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return base_to_hf(config) | {
        "sliding_window": window_to_hf(config),
        "rope_parameters": rope_to_hf(config.ropes[0]),
    }


def _mixtral_from_hf(hf: HfConfig) -> ModelConfig:
    plain = _from_hf(hf)
    return plain.model_copy(
        update={
            "family": "mixtral",
            "layers": tuple(layer.model_copy(update={"experts": True}) for layer in plain.layers),
            "ropes": (rope_from_hf(hf, plain.head_dim, theta=1e6),),
            "experts": Experts(
                count=hf.int("num_local_experts"),
                per_token=hf.int("num_experts_per_tok"),
                hidden=hf.int("intermediate_size"),
            ),
        }
    )


def _mixtral_to_hf(config: ModelConfig) -> dict[str, Any]:
    experts = {"num_local_experts": config.experts.count, "num_experts_per_tok": config.experts.per_token}
    return _to_hf(config) | experts


MISTRAL = Family("mistral", "MistralForCausalLM", _from_hf, _to_hf, lambda config: base_rows())
MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    _mixtral_from_hf,
    _mixtral_to_hf,
    lambda config: base_rows() + expert_rows(THEIRS + "block_sparse_moe.", "w1 w3 w2"),
)
