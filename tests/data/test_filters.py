from dataclasses import replace

import pytest

from distill.config import Dataset
from distill.data.filters import Sample, filters, first_reason

GOOD = Sample("p0", "four", "stop", "four")


@pytest.mark.parametrize(
    ("settings", "sample", "reason"),
    [
        ({}, GOOD, None),
        ({}, replace(GOOD, finish_reason="length"), "length"),
        ({}, replace(GOOD, finish_reason="length", completion=""), "length"),  # the first reason counts
        ({"keep_length": True}, replace(GOOD, finish_reason="length"), None),
        ({"keep_length": True}, replace(GOOD, finish_reason="length", completion=""), "empty"),
        ({}, replace(GOOD, completion=" \n\t"), "empty"),
        ({}, replace(GOOD, completion="five"), None),
        ({"verifier": {"name": "exact_match"}}, replace(GOOD, completion="five"), "wrong"),
        ({"verifier": {"name": "exact_match"}}, replace(GOOD, completion=" four\n"), None),
        ({"verifier": {"name": "exact_match"}}, replace(GOOD, completion="Four"), "wrong"),
        ({"verifier": {"name": "exact_match"}}, replace(GOOD, reference=None), "no_reference"),
    ],
)
def test_the_reason_to_drop_a_sample(settings: dict, sample: Sample, reason: str | None) -> None:
    assert first_reason(filters(Dataset(**settings)), sample) == reason


def test_the_same_answer_to_the_same_prompt_is_kept_once() -> None:
    chosen = filters(Dataset())
    samples = [GOOD, GOOD, replace(GOOD, completion="four "), replace(GOOD, prompt_id="p1"), GOOD]
    assert [first_reason(chosen, sample) for sample in samples] == [
        None,
        "duplicate",
        None,
        None,
        "duplicate",
    ]
    assert [first_reason(filters(Dataset(keep_duplicates=True)), GOOD) for _ in range(2)] == [None, None]


def test_an_answer_that_was_dropped_is_no_reason_to_drop_the_next_one() -> None:
    chosen = filters(Dataset())
    assert first_reason(chosen, replace(GOOD, finish_reason="length")) == "length"
    assert first_reason(chosen, GOOD) is None
