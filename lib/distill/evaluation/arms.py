"""Arms of an experiment, compared over their seeds: how much of the way to the teacher each one went.

    gain = (arm - baseline) / (teacher - baseline)

0 is the baseline, which learns without the teacher; 1 is the teacher. Seeds pair an arm with its baseline, since
equal seeds give equal orders of examples. The interval of the ratio is Fieller's (1954) for paired means, at 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

SCORES = ("nll", "kl", "exact_match", "agreement")
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and its bounds; the bounds are None of a single value."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of a mean, from independent values."""
    found = np.asarray(values, float)
    if len(found) < 2:
        return Interval(float(found[0]), None, None)
    half = _quantile(len(found)) * found.std(ddof=1) / math.sqrt(len(found))
    return Interval(float(found.mean()), float(found.mean() - half), float(found.mean() + half))


def gain(arm: Mapping[int, float], baseline: Mapping[int, float], teacher: float) -> tuple[Interval | None, str | None]:
    """The share of the way from baseline to teacher, from the seeds that both have; or None and the reason.

    It is withheld where the way is within noise: where the interval of `teacher - baseline` has zero in it, the
    ratio's has no ends.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    if len(seeds) < 2:
        return None, f"{len(seeds)} seed in common with the baseline, an interval needs 2"
    gone = np.asarray([arm[seed] - baseline[seed] for seed in seeds])
    way = np.asarray([teacher - baseline[seed] for seed in seeds])
    return fieller(gone, way)


def fieller(above: np.ndarray, below: np.ndarray) -> tuple[Interval | None, str | None]:
    """mean(above) / mean(below) of pairs, with the interval of E. C. Fieller (1954), J. R. Stat. Soc. B 16, eq. 3."""
    count, t = len(above), _quantile(len(above))
    (v11, v12), (_, v22) = np.cov(above, below) / count * t * t
    x, y = above.mean(), below.mean()
    a, b, c = y * y - v22, x * y - v12, x * x - v11
    if a <= 0:
        noise = math.sqrt(v22)
        return None, f"teacher - baseline is {y:.4g} ± {noise:.2g}, within noise: there is no way to go"
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(float(x / y), float((b - root) / a), float((b + root) / a)), None


def at_operations(curve: Sequence[tuple[float, float]], budget: float) -> float | None:
    """The score of a run when it had spent `budget`, between the points (operations, score) of its curve.

    None where the curve begins later or ends before.
    """
    points = sorted(curve)
    if not points or not points[0][0] <= budget <= points[-1][0]:
        return None
    return float(np.interp(budget, *zip(*points, strict=True)))


def compare_arms(
    arms: Mapping[str, Mapping[int, Mapping[str, Any]]], baseline: str, teacher: Mapping[str, Any]
) -> dict:
    """Every arm's scores and gains.

    arms: {arm: {seed: {score: value or None, ...}}}. Scores that the teacher or a seed lacks are null.
    """

    def column(arm: str, score: str) -> dict[int, float]:
        return {seed: found[score] for seed, found in arms[arm].items() if found.get(score) is not None}

    out: dict[str, Any] = {}
    for arm, seeds in arms.items():
        scores, gains, reasons = {}, {}, {}
        for score in SCORES:
            values = column(arm, score)
            whole = len(values) == len(seeds) and values
            scores[score] = interval(list(values.values()))._asdict() if whole else None
            if not whole or teacher.get(score) is None:
                found, reason = None, "no score"
            elif arm == baseline:
                found, reason = None, "the baseline itself"
            else:
                found, reason = gain(values, column(baseline, score), teacher[score])
            gains[score] = found and found._asdict()
            if reason:
                reasons[score] = reason
        out[arm] = {"seeds": sorted(seeds), "scores": scores, "gain": gains, "withheld": reasons}
    return out


def _quantile(count: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
