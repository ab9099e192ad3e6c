"""Qwen2 and 2.5 (arXiv 2407.10671), whose queries, keys and values have biases; Qwen3 and Qwen3-MoE (arXiv
2505.09388), which norm queries and keys instead.
"""

from typing import Any

from distill.models.config import Experts, Layer, ModelConfig
from distill.models.families.common import (
    Family,
    HfConfig,
    base_from_hf,
    base_rows,
    base_to_hf,
    expert_rows,
    layer_types,
    layer_types_to_hf,
    rope_from_hf,
    rope_to_hf,
    window_to_hf,
)


def _window(hf: HfConfig) -> int | None:
    """The window of the layers that have one; a size without `use_sliding_window` says nothing."""
    return hf.int("sliding_window", 4096) if hf.bool("use_sliding_window", False) else None


def _layers(hf: HfConfig) -> tuple[Layer, ...]:
    """From layer `max_window_layers` up the layers have a window, if any has."""
    window, count = _window(hf), hf.int("num_hidden_layers")
    above = [window is not None and i >= hf.int("max_window_layers", 28) for i in range(count)]
    return tuple(Layer(window=window if slides else None) for slides in layer_types(hf, above))


def _windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    types = layer_types_to_hf(config)
    return types | {"use_sliding_window": types["sliding_window"] is not None}


def _qwen2_from_hf(hf: HfConfig) -> ModelConfig:
    base = base_from_hf(hf) | {"layers": _layers(hf)}
    return ModelConfig(family="qwen2", **base, ropes=(rope_from_hf(hf, base["head_dim"]),), qkv_bias=True)


def _qwen2_to_hf(config: ModelConfig) -> dict[str, Any]:
    return base_to_hf(config) | _windows_to_hf(config) | {"rope_parameters": rope_to_hf(config.ropes[0])}


def _qwen3_from_hf(hf: HfConfig) -> ModelConfig:
    base, bias = base_from_hf(hf, head_dim=128) | {"layers": _layers(hf)}, hf.bool("attention_bias", False)
    return ModelConfig(
        family="qwen3",
        **base,
        ropes=(rope_from_hf(hf, base["head_dim"]),),
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
    )


def _qwen3_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _qwen2_to_hf(config) | {"attention_bias": config.qkv_bias}


def _moe_from_hf(hf: HfConfig) -> ModelConfig:
    plain, dense = _qwen3_from_hf(hf), set(hf.get("mlp_only_layers", []))
    step, window = hf.int("decoder_sparse_step", 1), _window(hf)
    sparse = [i not in dense and (i + 1) % step == 0 for i in range(len(plain.layers))]
    return plain.model_copy(
        update={
            "family": "qwen3_moe",
            "layers": tuple(Layer(window=window, experts=experts) for experts in sparse),
            "experts": Experts(
                count=hf.int("num_experts" if hf.get("num_experts") else "num_local_experts"),
                per_token=hf.int("num_experts_per_tok"),
                hidden=hf.int("moe_intermediate_size"),
                renormalise=hf.bool("norm_topk_prob", False),
            ),
        }
    )


def _moe_to_hf(config: ModelConfig) -> dict[str, Any]:
    experts, window = config.experts, window_to_hf(config)
    return base_to_hf(config) | {
        "attention_bias": config.qkv_bias,
        "rope_parameters": rope_to_hf(config.ropes[0]),
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, layer in enumerate(config.layers) if not layer.experts],
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.hidden,
        "norm_topk_prob": experts.renormalise,
    }


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _qwen2_from_hf, _qwen2_to_hf, lambda config: base_rows())
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _qwen3_from_hf, _qwen3_to_hf, lambda config: base_rows())
QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    _moe_from_hf,
    _moe_to_hf,
    lambda config: base_rows() + expert_rows(),
)
