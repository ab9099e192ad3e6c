"""Llama 2, 3, 3.1, 3.2, 3.3, and what shares its shape, such as SmolLM2."""

from typing import Any

from distill.models.config import Layer, ModelConfig
from distill.models.families.common import HfConfig, rope_from_hf, rope_to_hf
from distill.models.table import Row

ARCHITECTURES = ("LlamaForCausalLM",)


def from_hf(hf: HfConfig) -> ModelConfig:
    """Read a Hugging Face configuration."""
    heads = hf.int("num_attention_heads")
    head_dim = hf.int("head_dim", hf.int("hidden_size") // heads)
    return ModelConfig(
        family="llama",
        vocab_size=hf.int("vocab_size"),
        hidden=hf.int("hidden_size"),
        ffn=hf.int("intermediate_size"),
        heads=heads,
        kv_heads=hf.int("num_key_value_heads", heads),
        head_dim=head_dim,
        layers=(Layer(),) * hf.int("num_hidden_layers"),
        ropes=(rope_from_hf(hf, head_dim),),
        max_positions=hf.int("max_position_embeddings", 2048),
        norm_eps=hf.float("rms_norm_eps", 1e-6),
        activation=hf.activation("hidden_act"),
        tied=hf.bool("tie_word_embeddings", False),
        qkv_bias=hf.bool("attention_bias", False),
        output_bias=hf.bool("attention_bias", False),
        mlp_bias=hf.bool("mlp_bias", False),
        attention_scale=head_dim**-0.5,
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Hugging Face configuration that the architecture decides."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rope_parameters": rope_to_hf(config.ropes[0]),
    }


def rows(config: ModelConfig) -> list[Row]:
    """The weight table."""
    ours, theirs = "layers.{layer}.", "model.layers.{layer}."
    attention, mlp = theirs + "self_attn.", theirs + "mlp."
    return [
        Row("embed", "model.embed_tokens.weight", "V D"),
        Row("norm.weight", "model.norm.weight", "D"),
        Row("head", "lm_head.weight", "V D"),
        Row(ours + "attention_norm.weight", theirs + "input_layernorm.weight", "D"),
        Row(ours + "ffn_norm.weight", theirs + "post_attention_layernorm.weight", "D"),
        Row(ours + "attention.q", attention + "q_proj.weight", "(N H) D"),
        Row(ours + "attention.k", attention + "k_proj.weight", "(K H) D"),
        Row(ours + "attention.v", attention + "v_proj.weight", "(K H) D"),
        Row(ours + "attention.o", attention + "o_proj.weight", "D (N H)"),
        Row(ours + "attention.q_bias", attention + "q_proj.bias", "(N H)"),
        Row(ours + "attention.k_bias", attention + "k_proj.bias", "(K H)"),
        Row(ours + "attention.v_bias", attention + "v_proj.bias", "(K H)"),
        Row(ours + "attention.o_bias", attention + "o_proj.bias", "D"),
        Row(ours + "ffn.gate", mlp + "gate_proj.weight", "F D"),
        Row(ours + "ffn.up", mlp + "up_proj.weight", "F D"),
        Row(ours + "ffn.down", mlp + "down_proj.weight", "D F"),
        Row(ours + "ffn.gate_bias", mlp + "gate_proj.bias", "F"),
        Row(ours + "ffn.up_bias", mlp + "up_proj.bias", "F"),
        Row(ours + "ffn.down_bias", mlp + "down_proj.bias", "D"),
    ]
