"""What the scores add up to: the share of the teacher-student gap that each stage recovered.

    gap recovered = (stage - student before) / (teacher - student before)

0 is the student before, 1 the teacher; below 0 a stage did harm, above 1 it beat its teacher. "Before" is the
recipe's `student` model, also for a stage that starts elsewhere: one yardstick for all stages.
"""

import math
from pathlib import Path
from typing import Any

from distill.files import read_json

SCORES = {"exact_match": +1, "nll": -1}  # the sign says which way is better
GAPS = ("gap_recovered", "gap_recovered_nll")
TOLD = (*SCORES, "kl", "agreement")


def summarize(evaluations: dict[str, Path], teacher: str | None, student: str, stages: list[str], run: str) -> dict:
    """`summary.json` from the evaluation files of models and stages, by name.

    Each model has a score of every name in TOLD, or null. A gap is null, with the `reason` beside it, where there is
    no teacher, where a score is missing, where the teacher is not better than the student before, or where two
    tokenizers cut the references differently and NLL does not compare.
    """
    read = {name: read_json(path) for name, path in evaluations.items()}
    yardstick = read.get(student) or read.get(teacher or "") or next(iter(read.values()), {})
    return {
        "schema": 1,
        "run": run,
        "held_out": {"source": yardstick.get("source"), "count": yardstick.get("count")},
        "models": {name: {score: _score(found, score) for score in TOLD} for name, found in read.items()},
        "stages": {name: _stage(read, teacher, student, name) for name in stages},
    }


def _stage(read: dict[str, dict], teacher: str | None, student: str, stage: str) -> dict[str, Any]:
    if teacher is None:
        return dict.fromkeys(GAPS) | {"reason": "the recipe has no teacher to measure the gap by"}
    gaps, reasons = {}, []
    for score in SCORES:
        gap, reason = _gap(read, teacher, student, stage, score)
        gaps[score] = gap
        if reason:
            reasons.append(f"{score}: {reason}")
    reason = "; ".join(reasons) or None
    return {"gap_recovered": gaps["exact_match"], "gap_recovered_nll": gaps["nll"], "reason": reason}


def _gap(read: dict, teacher: str, student: str, stage: str, score: str) -> tuple[float | None, str | None]:
    """The gap that `stage` recovered on one score, or None and why."""
    names = (teacher, student, stage)
    values = {name: _score(read.get(name, {}), score) for name in names}
    if missing := [name for name, value in values.items() if value is None]:
        return None, f"no score of {' and '.join(missing)}"
    top, bottom, reached = (values[name] for name in names)
    tokens = {read[name].get("tokens") for name in names}
    if score == "nll" and len(tokens) > 1:
        return None, "tokenizers differ, so that a mean per token does not compare"
    if SCORES[score] * (top - bottom) <= 0:
        return (
            None,
            f"{teacher} ({top:.4g}) is not better than {student} before ({bottom:.4g}): no gap to recover",
        )
    return (reached - bottom) / (top - bottom), None


def _score(found: dict[str, Any], score: str) -> float | None:
    """A finite score, or None: a NaN is no score, and no JSON either."""
    value = found.get(score)
    return value if value is not None and math.isfinite(value) else None
