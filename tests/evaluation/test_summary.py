"""Laws of `summarize`: where 0 and 1 lie, and why there is none."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.summary import summarize
from distill.files import write_json

SHARES = st.floats(0, 1).map(lambda share: round(share, 3))


def summary_of(folder: Path, **scores: dict) -> dict:
    files = {}
    for name, score in scores.items():
        files[name] = folder / f"{name}.json"
        write_json(files[name], {"source": "held-out", "count": 100, "tokens": 800} | score)
    return summarize(files, "teacher", "student", [name for name in scores if name not in ("teacher", "student")], "r")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("summary")


def test_zero_is_the_student_before_and_one_the_teacher(folder: Path) -> None:
    top, bottom = {"exact_match": 0.9, "nll": 0.2}, {"exact_match": 0.1, "nll": 3.0}
    found = summary_of(folder, teacher=top, student=bottom, same=bottom, equal=top)
    assert found["stages"]["same"] == {"gap_recovered": 0.0, "gap_recovered_nll": 0.0, "reason": None}
    assert found["stages"]["equal"] == {"gap_recovered": 1.0, "gap_recovered_nll": 1.0, "reason": None}
    assert found["models"]["equal"] == top | {"kl": None, "agreement": None}
    assert found["held_out"] == {"source": "held-out", "count": 100}


@given(teacher=SHARES, student=SHARES, stage=SHARES)
def test_a_stage_between_the_two_recovers_between_none_and_all(
    folder: Path, teacher: float, student: float, stage: float
) -> None:
    scores = {name: {"exact_match": share, "nll": 1 - share}
              for name, share in (("teacher", teacher), ("student", student), ("sft", stage))}  # fmt: skip
    found = summary_of(folder, **scores)["stages"]["sft"]
    for gap in (found["gap_recovered"], found["gap_recovered_nll"]):
        if gap is None:
            assert teacher - student < 1e-9
            assert "no gap to recover" in found["reason"]
        else:
            assert (gap >= -1e-9) == (stage >= student)
            assert (gap <= 1 + 1e-9) == (stage <= teacher)


@pytest.mark.parametrize(
    ("change", "gap", "reason"),
    [
        (
            {"teacher": {"exact_match": 0.1}},
            "gap_recovered",
            "exact_match: teacher (0.1) is not better than student",
        ),
        (
            {"teacher": {"nll": 4.0}},
            "gap_recovered_nll",
            "nll: teacher (4) is not better than student before (3)",
        ),
        ({"sft": {"exact_match": None}}, "gap_recovered", "exact_match: no score of sft"),
        ({"student": {"nll": float("nan")}}, "gap_recovered_nll", "nll: no score of student"),
        ({"teacher": {"tokens": 700}}, "gap_recovered_nll", "nll: tokenizers differ"),
    ],
)
def test_a_gap_that_means_nothing_is_null_with_its_reason(
    folder: Path, change: dict[str, dict], gap: str, reason: str
) -> None:
    scores = {"teacher": {"exact_match": 0.9, "nll": 0.2}, "student": {"exact_match": 0.1, "nll": 3.0},
              "sft": {"exact_match": 0.8, "nll": 0.4}}  # fmt: skip
    found = summary_of(folder, **{name: score | change.get(name, {}) for name, score in scores.items()})
    stage = found["stages"]["sft"]
    other = {"gap_recovered", "gap_recovered_nll"} - {gap}
    assert stage[gap] is None
    assert all(0 < stage[name] < 1 for name in other)
    assert reason in stage["reason"]
    json.dumps(found, allow_nan=False)


def test_without_a_teacher_there_is_no_gap_to_recover(folder: Path) -> None:
    write_json(folder / "student.json", {"exact_match": 0.1, "nll": 3.0})
    write_json(folder / "sft.json", {"exact_match": 0.8, "nll": 0.4})
    found = summarize({name: folder / f"{name}.json" for name in ("student", "sft")}, None, "student", ["sft"], "r")
    reason = "the recipe has no teacher to measure the gap by"
    assert found["stages"]["sft"] == {"gap_recovered": None, "gap_recovered_nll": None, "reason": reason}
    assert found["models"]["sft"]["exact_match"] == 0.8


def test_a_model_that_was_not_evaluated_is_named(folder: Path) -> None:
    found = summary_of(folder, student={"exact_match": 0.1, "nll": 3.0}, sft={"exact_match": 0.2, "nll": 2.0})
    reason = "exact_match: no score of teacher; nll: no score of teacher"
    assert found["stages"]["sft"] == {"gap_recovered": None, "gap_recovered_nll": None, "reason": reason}
