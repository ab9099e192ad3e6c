"""Every family gives the logits of `transformers`, for sequences alone, padded on either side, and packed.

In the golden checkpoints each distinctive setting of a family moves its logits, see golden/README.md.
"""

import jax
import numpy as np
import pytest
from golden_models import ATOL, CASES, FOLDER, MEAN_KL, NAMES, case, golden, load, run

from distill.checkpoints.convert import load_checkpoint
from distill.evaluation.parity import Parity, compare, together
from distill.models import layouts


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, which: str, holds) -> None:
    config, params = load(name)
    wanted = case(golden(name), which)
    parity = wanted.parity(run(config, params, wanted))
    holds(name, f"golden {which}", parity.max_difference)
    assert parity.max_difference <= ATOL
    assert parity.mean_kl <= MEAN_KL


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_moe", "deepseek_v2_lite"])
def test_bfloat16_is_the_same_model_up_to_rounding(name: str) -> None:
    """Some tokens near a border go to other experts, so a bound on every logit would say nothing."""
    config, params = load_checkpoint(FOLDER / name, dtype="bfloat16")
    wanted = case(golden(name), "plain")
    for tree in (params, layouts.stack(config, jax.tree.map(lambda leaf: leaf, params))):
        assert wanted.parity(run(config, tree, wanted)).mean_kl < 5e-3


def test_kl_of_two_known_distributions() -> None:
    ours, reference = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.5, 0.5], [0.5, 0.5]])
    parity = compare(ours + 3.0, reference)  # logits are known up to a constant, KL does not see it
    kl = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose([parity.max_kl, parity.mean_kl], [kl, kl / 2], rtol=1e-12)
    assert parity.top1_agreement == 1.0
    assert parity.max_difference == pytest.approx(3.0 + np.log(0.9 / 0.5))


def test_a_comparison_in_parts_is_the_one_of_the_whole() -> None:
    ours, reference = np.random.default_rng(0).normal(size=(2, 7, 5))
    whole, parts = (
        compare(ours, reference),
        together([compare(ours[:2], reference[:2]), compare(ours[2:], reference[2:])]),
    )
    np.testing.assert_allclose([*vars(parts).values()], [*vars(whole).values()], rtol=1e-12)


def test_logits_that_are_no_numbers_pass_no_limit() -> None:
    broken = compare(np.full((1, 2), np.nan), np.zeros((1, 2)))
    assert not broken.within(np.inf, np.inf)
    assert Parity(0.0, 0.0, 0.0, 1.0, 1).within(0.0, 0.0)
