"""Phi-3 (arXiv 2404.14219): fused projections, part of each head rotated, and LongRoPE in the long models.

LongRoPE has factors for sequences within the original context and others for longer ones. `transformers`
takes the long ones for a whole batch once any of its positions is beyond. Here it is a matter of each
sequence, so that no example depends on its neighbours: by its own length in training and scoring, and in
generation, where keys are cached rotated, by the length that samples may reach
(`generation.max_target_length`). vLLM does the latter by its longest length too.
"""

from typing import Any

from distill.models.config import Layer, ModelConfig
from distill.models.families.common import (
    ATTENTION,
    MLP,
    OURS,
    Family,
    HfConfig,
    base_from_hf,
    base_rows,
    base_to_hf,
    rope_from_hf,
    rope_to_hf,
    window_to_hf,
)
from distill.models.table import Row


def _from_hf(hf: HfConfig) -> ModelConfig:
    base, values = base_from_hf(hf), hf.part("rope_parameters")
    window = hf.int("sliding_window") if hf.get("sliding_window") else None
    rotated = values.float("partial_rotary_factor", hf.float("partial_rotary_factor", 1.0))
    scaling = hf.part("rope_scaling")
    if scaling.get("type") == "yarn":  # what the first files called it
        hf = HfConfig(hf.values | {"rope_scaling": scaling.values | {"type": "longrope"}})
    return ModelConfig(
        family="phi3",
        **base | {"layers": (Layer(window=window),) * len(base["layers"])},
        ropes=(rope_from_hf(hf, int(base["head_dim"] * rotated)),),
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    rope = config.ropes[0]
    original = rope.scaling.original if rope.scaling else config.max_positions
    return base_to_hf(config) | {
        "sliding_window": window_to_hf(config),
        "original_max_position_embeddings": original,
        "rope_parameters": rope_to_hf(rope) | {"partial_rotary_factor": rope.width / config.head_dim},
    }


def _rows(config: ModelConfig) -> list[Row]:
    heads, halves = ("N H", "K H", "K H"), ("F", "F")
    fused = [
        Row(OURS + "attention.q", ATTENTION + "qkv_proj.weight", "(N H) D", (0, heads)),
        Row(OURS + "attention.k", ATTENTION + "qkv_proj.weight", "(K H) D", (1, heads)),
        Row(OURS + "attention.v", ATTENTION + "qkv_proj.weight", "(K H) D", (2, heads)),
        Row(OURS + "ffn.gate", MLP + "gate_up_proj.weight", "F D", (0, halves)),
        Row(OURS + "ffn.up", MLP + "gate_up_proj.weight", "F D", (1, halves)),
    ]
    return base_rows() + fused


PHI3 = Family("phi3", "Phi3ForCausalLM", _from_hf, _to_hf, _rows)
