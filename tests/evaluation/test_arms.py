"""Arms over their seeds."""

import numpy as np
import pytest

from distill.evaluation.arms import at_operations, compare_arms, fieller, gain, interval


def test_an_interval_is_student_s() -> None:
    # t(0.975, 4) = 2.776445, of 1 2 3 4 5: 3 ± 2.776445 · 1.581139 / √5
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3.0, 3 - 1.963243, 3 + 1.963243), abs=1e-5)
    assert interval([2.0]) == (2.0, None, None)


def test_a_gain_without_noise_below_is_the_mean_s_interval() -> None:
    baseline, arm = {0: 2.0, 1: 2.0, 2: 2.0}, {0: 1.0, 1: 1.2, 2: 1.4, 7: 9.0}
    found, reason = gain(arm, baseline, 0.0)
    assert reason is None
    half = (interval([1.0, 0.8, 0.6]).high - 0.8) / 2
    assert found == pytest.approx((0.4, 0.4 - half, 0.4 + half))


def test_fieller_holds_the_ratio_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    above, below = random.normal(1.0, 0.5, (2000, 5)), random.normal(2.0, 0.5, (2000, 5))
    found = [fieller(a, b)[0] for a, b in zip(above, below, strict=True)]
    inside = [one.low <= 0.5 <= one.high for one in found if one is not None]
    assert len(inside) > 1900
    assert 0.93 < np.mean(inside) < 0.97


def test_a_gain_is_withheld_where_the_teacher_is_no_better_than_noise() -> None:
    found, reason = gain({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, 1.6)
    assert found is None
    assert "within noise" in reason
    assert gain({0: 1.0}, {0: 2.0}, 0.0) == (None, "1 seed in common with the baseline, an interval needs 2")


def test_seeds_are_paired() -> None:
    """The baseline's own scatter is in arm and baseline alike: paired, the gain is certain."""
    baseline = {0: 2.0, 1: 2.1, 2: 2.3}
    arm = {seed: value - 0.5 * (value - 0.1) for seed, value in baseline.items()}
    found, _ = gain(arm, baseline, 0.1)
    assert found == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)


def test_a_curve_is_read_where_the_budget_ends() -> None:
    curve = [(0.0, 3.0), (10.0, 2.0), (20.0, 1.0)]
    assert at_operations(curve, 15.0) == pytest.approx(1.5)
    assert at_operations(curve, 20.0) == 1.0
    assert at_operations(curve, 21.0) is None
    assert at_operations([(5.0, 3.0)], 4.0) is None


def test_what_is_missing_is_null_with_its_reason() -> None:
    arms = {
        "ce": {0: {"nll": 1.0, "exact_match": None}, 1: {"nll": 1.1, "exact_match": None}},
        "kd": {0: {"nll": 0.5, "exact_match": 0.5}, 1: {"nll": 0.6, "exact_match": 0.6}},
    }
    found = compare_arms(arms, "ce", {"nll": 0.0, "exact_match": 1.0})
    assert found["kd"]["gain"]["nll"]["mean"] == pytest.approx(0.5 / 1.05)
    assert found["ce"]["gain"]["nll"] is None
    assert found["ce"]["withheld"]["nll"] == "the baseline itself"
    assert found["kd"]["scores"]["exact_match"]["mean"] == pytest.approx(0.55)
    assert found["kd"]["gain"]["exact_match"] is None
    assert found["kd"]["gain"]["kl"] is None
