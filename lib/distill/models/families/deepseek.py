"""DeepSeek-V2 and V2-Lite (arXiv 2405.04434) and V3 (arXiv 2412.19437).

Latent attention in all layers, and experts in those behind the first dense ones.

They differ in the router: V2 takes the highest softmax scores, from the best groups or from all, and does not
renormalise them; V3 takes the highest sigmoid scores plus a bias, renormalises, and always has groups.
"""

from typing import Any

from distill.models.config import Experts, Latent, Layer, ModelConfig
from distill.models.families.common import (
    ATTENTION,
    MLP,
    OURS,
    Family,
    HfConfig,
    base_from_hf,
    base_rows,
    base_to_hf,
    expert_rows,
    ffn_rows,
    rope_from_hf,
    rope_to_hf,
)
from distill.models.rope import yarn_mscale
from distill.models.table import Row


def _base(hf: HfConfig) -> dict[str, Any]:
    """All but the router."""
    for name in ("attention_bias", "mlp_bias"):
        hf.only(name, False)
    hf.only("moe_layer_freq", 1)
    base = base_from_hf(hf)
    latent = Latent(
        q_rank=hf.int("q_lora_rank") if hf.get("q_lora_rank") else None,
        kv_rank=hf.int("kv_lora_rank"),
        nope=hf.int("qk_nope_head_dim"),
        rope=hf.int("qk_rope_head_dim"),
        value=hf.int("v_head_dim"),
    )
    rope, dense = rope_from_hf(hf, latent.rope), hf.int("first_k_dense_replace", 0)
    scale = (latent.nope + latent.rope) ** -0.5
    if rope.scaling and rope.scaling.mscale_all_dim:
        scale *= yarn_mscale(rope.scaling, rope.scaling.mscale_all_dim) ** 2
    return base | {
        "kv_heads": base["heads"],
        "head_dim": latent.nope + latent.rope,
        "layers": tuple(Layer(experts=i >= dense) for i in range(len(base["layers"]))),
        "ropes": (rope,),
        "latent": latent,
        "attention_scale": scale,
    }


def _experts(hf: HfConfig, **router: Any) -> Experts:
    hidden = hf.int("moe_intermediate_size")
    return Experts(
        count=hf.int("n_routed_experts"),
        per_token=hf.int("num_experts_per_tok"),
        hidden=hidden,
        shared_hidden=hidden * hf.int("n_shared_experts", 0),
        scale=hf.float("routed_scaling_factor", 1.0),
        **router,
    )


def _v2_from_hf(hf: HfConfig) -> ModelConfig:
    """`norm_topk_prob`: DeepSeek's own code renormalises instead of scaling, the reference ignores it."""
    hf.only("norm_topk_prob", False)
    hf.only("scoring_func", "softmax")
    hf.only("topk_method", "greedy", "group_limited_greedy")
    grouped = hf.get("topk_method") == "group_limited_greedy"
    groups = {"groups": hf.int("n_group"), "top_groups": hf.int("topk_group")} if grouped else {}
    return ModelConfig(
        family="deepseek_v2",
        **_base(hf),
        rope_interleaved=True,
        experts=_experts(hf, renormalise=False, **groups),
    )


def _v3_from_hf(hf: HfConfig) -> ModelConfig:
    hf.only("scoring_func", "sigmoid")
    hf.only("topk_method", "noaux_tc")
    experts = _experts(
        hf,
        scores="sigmoid",
        bias=True,
        groups=hf.int("n_group", 1),
        top_groups=hf.int("topk_group", 1),
        group_score="top2",
        renormalise=hf.bool("norm_topk_prob", True),
    )
    return ModelConfig(
        family="deepseek_v3",
        **_base(hf),
        rope_interleaved=hf.bool("rope_interleave", True),
        experts=experts,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    latent, experts = config.latent, config.experts
    return base_to_hf(config) | {
        "head_dim": latent.rope,
        "qk_head_dim": config.head_dim,
        "q_lora_rank": latent.q_rank,
        "kv_lora_rank": latent.kv_rank,
        "qk_nope_head_dim": latent.nope,
        "qk_rope_head_dim": latent.rope,
        "v_head_dim": latent.value,
        "first_k_dense_replace": sum(not layer.experts for layer in config.layers),
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.hidden,
        "n_shared_experts": experts.shared_hidden // experts.hidden,
        "routed_scaling_factor": experts.scale,
        "n_group": experts.groups,
        "topk_group": experts.top_groups,
        "rope_parameters": rope_to_hf(config.ropes[0]),
    }


def _v2_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _to_hf(config) | {"topk_method": "group_limited_greedy" if config.experts.groups > 1 else "greedy"}


def _v3_to_hf(config: ModelConfig) -> dict[str, Any]:
    router = {"norm_topk_prob": config.experts.renormalise, "rope_interleave": config.rope_interleaved}
    return _to_hf(config) | router


def _rows(config: ModelConfig) -> list[Row]:
    latent, joined = ATTENTION + "kv_a_proj_with_mqa.weight", ("R", "U")
    return [
        *base_rows(),
        *expert_rows(),
        *ffn_rows("ffn.shared.", MLP + "shared_experts.", "Y"),
        Row(OURS + "ffn.router_bias", MLP + "gate.e_score_correction_bias", "E"),
        Row(OURS + "attention.q_a", ATTENTION + "q_a_proj.weight", "Q D"),
        Row(OURS + "attention.q_a_norm.weight", ATTENTION + "q_a_layernorm.weight", "Q"),
        Row(OURS + "attention.q_b", ATTENTION + "q_b_proj.weight", "(N H) Q"),
        Row(OURS + "attention.kv_a", latent, "R D", (0, joined)),
        Row(OURS + "attention.k_rope", latent, "U D", (1, joined)),
        Row(OURS + "attention.kv_a_norm.weight", ATTENTION + "kv_a_layernorm.weight", "R"),
        Row(OURS + "attention.kv_b", ATTENTION + "kv_b_proj.weight", "(N Z) R"),
        Row(OURS + "attention.o", ATTENTION + "o_proj.weight", "D (N W)"),
    ]


def _further_predictions(hf: HfConfig) -> tuple[str, ...]:
    """V3's layers behind the last one, which predict tokens after the next (section 2.2): for training alone."""
    last, more = hf.int("num_hidden_layers"), hf.int("num_nextn_predict_layers", 0)
    return tuple(f"model.layers.{last + i}." for i in range(more))


DEEPSEEK_V2 = Family("deepseek_v2", "DeepseekV2ForCausalLM", _v2_from_hf, _v2_to_hf, _rows)
DEEPSEEK_V3 = Family("deepseek_v3", "DeepseekV3ForCausalLM", _v3_from_hf, _v3_to_hf, _rows, _further_predictions)
