from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import pytest

from distill.config.dataset import Dataset
from distill.data.filters import Sample, best, filters, first_reason, judge
from distill.text.answers import last_number, without_thought

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
        ({"quality": {"min_characters": 5}}, GOOD, "short"),
        ({"quality": {"max_characters": 3}}, GOOD, "long"),
        ({"quality": {"min_characters": 4, "max_characters": 4}}, GOOD, None),
        ({"quality": {"match": "^f"}}, GOOD, None),
        ({"quality": {"match": "^o"}}, GOOD, "no_match"),
        ({"quality": {"reject": "ou"}}, GOOD, "rejected"),
        ({"quality": {"refusal": True}}, replace(GOOD, completion="I'm sorry, but I can't help with that."), "refusal"),
        ({"quality": {"refusal": True}}, replace(GOOD, completion="As an AI language model, I see."), "refusal"),
        ({"quality": {"refusal": True}}, replace(GOOD, completion="He said that he was sorry."), None),
        ({"quality": {"refusal": True}}, replace(GOOD, completion="x" * 300 + " I cannot say."), None),
        ({"quality": {"languages": ["en"]}}, replace(GOOD, completion="It is the capital of France."), None),
        ({"quality": {"languages": ["de"]}}, replace(GOOD, completion="It is the capital of France."), "language"),
        ({"quality": {"languages": ["de"]}}, replace(GOOD, completion="2 + 2"), None),
        ({"quality": {"repetition": 0.5}}, replace(GOOD, completion="on and on " * 20), "repetition"),
        ({"quality": {"repetition": 0.5}}, replace(GOOD, completion=" ".join(map(str, range(50)))), None),
        ({"quality": {"repetition": 0.0}}, GOOD, None),
        ({"quality": {"min_logprob": -1.0}}, replace(GOOD, logprob=-1.1), "unlikely"),
        ({"quality": {"min_logprob": -1.0}}, replace(GOOD, logprob=-1.0), None),
        ({"quality": {"min_logprob": -1.0}}, GOOD, "no_logprobs"),
        ({"verifier": {"name": "numeric"}}, Sample("p", "It is 1,000.0 in all.", "stop", "#### 1000"), None),
        ({"verifier": {"name": "numeric"}}, Sample("p", "10 and then 11", "stop", "10"), "wrong"),
        ({"verifier": {"name": "numeric"}}, Sample("p", "none", "stop", "10"), "wrong"),
        ({"verifier": {"name": "numeric"}}, Sample("p", "10", "stop", "ten"), "no_reference"),
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


def test_the_best_of_a_prompt_are_kept_among_those_that_passed() -> None:
    samples = [Sample("p", text, "stop", None, mean) for text, mean in (("a", -3.0), ("bb", -1.0), ("c", -2.0))]
    samples += [Sample("q", "d", "stop", None, None), Sample("p", "eeee", "stop", None, -0.5)]
    reasons = [None, None, None, None, "wrong"]

    def kept(keep: int, by: str) -> str:
        marked = list(reasons)
        best(samples, marked, keep, by)
        assert set(marked) <= {None, "wrong", "not_best"}
        return " ".join(sample.completion for sample, reason in zip(samples, marked, strict=True) if reason is None)

    assert kept(1, "logprob") == "bb d"
    assert kept(2, "logprob") == "bb c d"
    assert kept(1, "shortest") == "a d"
    assert kept(1, "first") == "a d"
    assert kept(9, "first") == "a bb c d"


def test_judging_many_is_judging_one_after_the_other() -> None:
    samples = [Sample(f"p{i % 3}", text, "stop", "four") for i, text in enumerate(["four", "five", " ", "four"] * 4)]
    wanted = Dataset(verifier={"name": "exact_match"})
    one_by_one = filters(wanted)
    with ThreadPoolExecutor(2) as pool:
        assert judge(filters(wanted), samples, pool) == [first_reason(one_by_one, sample) for sample in samples]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>hm\nhm</think>\n\nyes", "yes"),
        ("hm</think>yes", "yes"),
        ("<think>a</think>b</think> c", "c"),
        ("<think>never done", ""),
        ("no thought", "no thought"),
        ("say <think> aloud", "say <think> aloud"),
    ],
)
def test_an_answer_without_its_thought(text: str, left: str) -> None:
    assert without_thought(text) == left


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 1,200.50 $", "1200.5"), ("-3", "-3"), ("a1b22", "22"), (".5", "0.5"), ("1,2", "2"), ("none", None)],
)
def test_the_number_that_an_answer_ends_with(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))
