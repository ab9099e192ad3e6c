"""Operations of a step, and the peak that they are a share of."""

import pytest
from tiny_models import tiny_config

from distill.config.stages import Stage
from distill.models.families import config_from_hf
from distill.training import speed


def test_operations_are_six_a_weight_and_the_attention() -> None:
    config = config_from_hf(tiny_config())
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32  # q and o, k and v, feed-forward, norms
    weights = 2 * layer + 40 * 32 + 32  # the head is the embedding
    attention = 2 * (2 * 32) * 32 * 3 * 2  # 2 layers; scores and sums, 32 of 64 positions, 4 heads of 8; thrice
    assert speed.token_operations(config, 64) == pytest.approx(6 * weights + attention)
    assert speed.token_operations(config, 64, backward=1) == pytest.approx(4 * weights + attention)


def test_a_token_pays_for_the_experts_it_asks() -> None:
    moe = config_from_hf(tiny_config() | {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8,
        "num_experts_per_tok": 2,
    })  # fmt: skip
    more = moe.model_copy(update={"experts": moe.experts.model_copy(update={"count": 16})})
    routers = 6 * 2 * 8 * 32
    assert speed.token_operations(more, 64) - speed.token_operations(moe, 64) == pytest.approx(routers)


def test_no_peak_is_made_up() -> None:
    assert speed.peak(Stage(init="-", steps=1, dtype="bfloat16")) is None
