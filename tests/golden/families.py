"""The tiny checkpoints that golden files are made of: one entry a family, every distinctive setting in play.

Dimensions are even, so that devices can share them, and mostly unequal: a swapped weight does not fit.
Soft caps, windows and scaling factors are set where a sequence of a hundred tokens feels them.
"""

from dataclasses import dataclass, field
from typing import Any

BASE = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,  # large enough to be seen
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = 8


@dataclass(frozen=True)
class Family:
    """A checkpoint and what must matter in it.

    `config` is laid over BASE. `felt` maps the name of a feature to how it is switched off, either settings
    that replace those of `config` or a pattern of tensors that become zero; logits must then move.
    """

    model_type: str
    config: dict[str, Any]
    felt: dict[str, dict[str, Any] | str] = field(default_factory=dict)


def rope(kind: str = "default", theta: float = 10000.0, **settings: Any) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 writes them."""
    return {"rope_type": kind, "rope_theta": theta, **settings}


def yarn(mscale: float, mscale_all_dim: float) -> dict[str, Any]:
    """YaRN over four frequencies: the first is kept, the second halfway, the others are interpolated."""
    return rope("yarn", 100.0, factor=4.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=1.0,
                mscale=mscale, mscale_all_dim=mscale_all_dim)  # fmt: skip


def by_layer(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3: a rotation of its own for global and for local layers."""
    return {"full_attention": full, "sliding_attention": sliding}


GLOBAL, LOCAL = rope("linear", factor=8.0), rope(theta=100.0)
# Over eight frequencies: one is kept, two lie between, the others are divided by `factor`.
LLAMA3 = rope("llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
SHORT, LONG = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5], [1.0, 1.5, 2.5, 4.0, 6.0, 8.0]
# Whole batches use the long factors once a position passes the original context: 104 tokens do, 64 do not.
LONGROPE = rope("longrope", 1000.0, short_factor=SHORT, long_factor=LONG, partial_rotary_factor=0.75,
                original_max_position_embeddings=72)  # fmt: skip
MLA = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 8,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 3,
}
GROUPS = {"n_group": 4, "topk_group": 2}

FAMILIES = {
    "llama_mha": Family("llama", {"num_key_value_heads": 4, "rope_parameters": rope()}),
    "llama_gqa_tied": Family(
        "llama",
        {"tie_word_embeddings": True, "rope_parameters": rope(theta=500.0)},
        {"rope_theta": {"rope_parameters": rope()}},
    ),
    "llama3_scaling": Family(
        "llama",
        {"head_dim": 16, "rope_parameters": LLAMA3},
        {"llama3 scaling": {"rope_parameters": rope(theta=500.0)}},
    ),
    "mistral": Family(
        "mistral",
        {"sliding_window": 24, "rope_parameters": rope(theta=1000.0)},
        {"sliding window": {"sliding_window": None}, "one token of it": {"sliding_window": 25}},
    ),
    "mixtral": Family(
        "mixtral",
        {
            "intermediate_size": 12,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "rope_parameters": rope(),
        },
        {"second expert": {"num_experts_per_tok": 1}},
    ),
    "qwen2": Family(
        "qwen2",
        {
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 1,
            "rope_parameters": rope(theta=1000.0),
        },
        {"biases": r"bias$", "sliding window of the upper layers": {"use_sliding_window": False}},
    ),
    "qwen3": Family("qwen3", {"head_dim": 16, "rope_parameters": rope(theta=1000.0)}),
    "qwen3_moe": Family(
        "qwen3_moe",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "mlp_only_layers": [1],
            "moe_intermediate_size": 10,
            "num_experts": EXPERTS,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "rope_parameters": rope(theta=1000.0),
        },
        {"norm_topk_prob": {"norm_topk_prob": False}},
    ),
    "gemma2": Family(
        "gemma2",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 24,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 5.0,
            "rope_parameters": rope(),
        },
        {
            "query scale": {"query_pre_attn_scalar": 16},
            "attention soft cap": {"attn_logit_softcapping": None},
            "final soft cap": {"final_logit_softcapping": None},
            "sliding window": {"sliding_window": 1000},
            "order of layers": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        },
    ),
    "gemma3_text": Family(
        "gemma3_text",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": by_layer(GLOBAL, LOCAL),
        },
        {
            "query scale": {"query_pre_attn_scalar": 16},
            "sliding window": {"sliding_window": 1000},
            "global scaling": {"rope_parameters": by_layer(rope(), LOCAL)},
            "local base": {"rope_parameters": by_layer(GLOBAL, rope())},
        },
    ),
    "phi3": Family(
        "phi3",
        {"sliding_window": 24, "rope_parameters": rope(), "original_max_position_embeddings": 128},
        {"sliding window": {"sliding_window": None}},
    ),
    "phi3_longrope": Family(
        "phi3",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 72,
            "max_position_embeddings": 288,
            "rope_parameters": LONGROPE,
        },
        {
            "long factors": {"rope_parameters": LONGROPE | {"long_factor": SHORT}},
            "attention factor": {"max_position_embeddings": 72},
        },
    ),
    "deepseek_v2_lite": Family(
        "deepseek_v2",
        MLA | {"q_lora_rank": None, "n_shared_experts": 2, "rope_parameters": yarn(0.707, 0.707)},
        {
            "YaRN": {"rope_parameters": rope(theta=100.0)},
            "mscale of the softmax": {"rope_parameters": yarn(0.707, 0.0)},
            "third expert": {"num_experts_per_tok": 2},
        },
    ),
    "deepseek_v2": Family(
        "deepseek_v2",
        MLA
        | GROUPS
        | {
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 2.5,
            "rope_parameters": yarn(1.0, 0.5),
        },
        {
            "mscale of the rotation": {"rope_parameters": yarn(0.5, 0.5)},
            "groups": {"topk_method": "greedy"},
            "routed scaling": {"routed_scaling_factor": 1.0},
        },
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        MLA
        | GROUPS
        | {
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "rope_parameters": yarn(1.0, 1.0),
        },
        {
            "score correction bias": r"e_score_correction_bias$",
            "groups": {"n_group": 1, "topk_group": 1},
            "norm_topk_prob": {"norm_topk_prob": False},
            "routed scaling": {"routed_scaling_factor": 1.0},
            "mscale of the softmax": {"rope_parameters": yarn(0.0, 0.0)},
            "interleaved rotation": {"rope_interleave": False},
        },
    ),
}
