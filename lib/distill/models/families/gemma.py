"""Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv 2503.19786).

Norms multiply by one plus their weight, stand before and behind attention and feed-forward, and embeddings
are scaled by the root of their width. Layers with a window and layers without take turns; in Gemma 3 each
kind has a rotary embedding of its own, and queries and keys have a norm in place of Gemma 2's soft cap on
their scores.
"""

from typing import Any

from distill.models.config import Layer, ModelConfig, Rope
from distill.models.families.common import (
    OURS,
    THEIRS,
    Family,
    HfConfig,
    activation_to_hf,
    base_from_hf,
    base_rows,
    base_to_hf,
    layer_types,
    layer_types_to_hf,
    rope_from_hf,
    rope_to_hf,
)
from distill.models.table import Row

FULL, SLIDING = 0, 1
"""Gemma 3's two rotary embeddings, as indices into `ModelConfig.ropes`."""


def _base(hf: HfConfig, full_every: int, local_rope: int) -> dict[str, Any]:
    """What both have in common; in older files every so many layers one sees everything."""
    hf.only("use_bidirectional_attention", False)
    base, bias = base_from_hf(hf, head_dim=256, tied=True), hf.bool("attention_bias", False)
    window = hf.int("sliding_window", 4096)
    slides = layer_types(hf, [(i + 1) % full_every != 0 for i in range(len(base["layers"]))])
    return base | {
        "layers": tuple(Layer(window=window, rope=local_rope) if local else Layer() for local in slides),
        "activation": hf.activation("hidden_activation", "gelu_pytorch_tanh"),
        "norm_offset": 1.0,
        "post_norms": True,
        "embed_scale": base["hidden"] ** 0.5,
        "attention_scale": hf.float("query_pre_attn_scalar", 256) ** -0.5,
        "qkv_bias": bias,
        "output_bias": bias,
    }


def _softcap(hf: HfConfig, name: str, default: float | None) -> float | None:
    """A soft cap; null, other than an absent field, says that there is none."""
    return hf.number_or_none(name) if name in hf.values else default


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return base_to_hf(config) | layer_types_to_hf(config) | {
        "hidden_activation": activation_to_hf(config),
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "attention_bias": config.qkv_bias,
    }  # fmt: skip


def _gemma2_from_hf(hf: HfConfig) -> ModelConfig:
    base = _base(hf, 2, 0)
    return ModelConfig(
        family="gemma2",
        **base,
        ropes=(rope_from_hf(hf, base["head_dim"]),),
        attention_softcap=_softcap(hf, "attn_logit_softcapping", 50.0),
        logit_softcap=_softcap(hf, "final_logit_softcapping", 30.0),
    )


def _gemma2_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _to_hf(config) | {"rope_parameters": rope_to_hf(config.ropes[0])}


def _gemma3_from_hf(hf: HfConfig) -> ModelConfig:
    """`attn_logit_softcapping` may be there, and does nothing in the reference."""
    base = _base(hf, hf.int("sliding_window_pattern", 6), SLIDING)
    return ModelConfig(
        family="gemma3_text",
        **base,
        ropes=_gemma3_ropes(hf, base["head_dim"]),
        qk_norm=True,
        logit_softcap=_softcap(hf, "final_logit_softcapping", None),
    )


def _gemma3_ropes(hf: HfConfig, width: int) -> tuple[Rope, Rope]:
    """One entry a kind of layer; older files scale the global one alone."""
    nested = hf.part("rope_parameters")
    if nested.get("full_attention"):
        full, sliding = nested.part("full_attention"), nested.part("sliding_attention")
        return rope_from_hf(hf, width, 1e6, full), rope_from_hf(hf, width, 1e4, sliding)
    local = HfConfig({"rope_theta": hf.float("rope_local_base_freq", 1e4)})
    return rope_from_hf(hf, width, 1e6), rope_from_hf(hf, width, values=local)


def _gemma3_to_hf(config: ModelConfig) -> dict[str, Any]:
    full, sliding = (rope_to_hf(rope) for rope in config.ropes)
    return _to_hf(config) | {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def _rows(config: ModelConfig) -> list[Row]:
    return [
        *base_rows(ffn_norm="pre_feedforward_layernorm"),
        Row(OURS + "attention_post_norm.weight", THEIRS + "post_attention_layernorm.weight", "D"),
        Row(OURS + "ffn_post_norm.weight", THEIRS + "post_feedforward_layernorm.weight", "D"),
    ]


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _gemma2_from_hf, _gemma2_to_hf, _rows)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _gemma3_from_hf, _gemma3_to_hf, _rows)
