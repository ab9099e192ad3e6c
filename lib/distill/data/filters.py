"""Reasons to leave a sample out of the training data, asked in the order in which they stand here."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

from distill.config.dataset import Dataset, Quality
from distill.data.verifiers import verifier
from distill.text.language import is_in


@dataclass(frozen=True)
class Sample:
    """What a filter may look at; `logprob` is the mean over the answer's tokens, None where nobody told it.

    score: the judge's, where one was asked.
    """

    prompt_id: str
    completion: str
    finish_reason: str
    reference: str | None
    logprob: float | None = None
    prompt: Sequence[Mapping[str, str]] = ()
    score: float | None = None


Filter = Callable[[Sample], str | None]
"""The reason to drop a sample, or None."""
Scores = Callable[[Sequence[tuple[Sequence[Mapping[str, str]], str, str | None]]], list[float | None]]
"""A judge's score of each (prompt, completion, reference), None where it gives none."""

GRAM = 4  # words in a run that is looked for again
REFUSALS = re.compile(
    r"\b(I('m| am) (sorry|afraid|unable|not able)|I (can('|no)t|won't|will not|do not feel comfortable)"
    r"|as an AI( language)? model|I apologi[sz]e)\b",
    re.IGNORECASE,
)
OPENING = 200  # characters in which a refusal says that it is one


def length(sample: Sample) -> str | None:
    """Cut off by max_target_length: its end was never written, so it teaches not to end."""
    return "length" if sample.finish_reason == "length" else None


def empty(sample: Sample) -> str | None:
    """Nothing but white space."""
    return None if sample.completion.strip() else "empty"


def size(sample: Sample, low: int | None, high: int | None) -> str | None:
    """Fewer or more characters than wanted."""
    if low is not None and len(sample.completion) < low:
        return "short"
    return "long" if high is not None and len(sample.completion) > high else None


def repetition(sample: Sample, most: float) -> str | None:
    """More than a share `most` of its runs of four words came before in it: it turns in a circle."""
    words = sample.completion.split()
    runs = len(words) - GRAM + 1
    if runs < 1:
        return None
    distinct = len(set(zip(*(words[i:] for i in range(GRAM)), strict=False)))
    return "repetition" if 1 - distinct / runs > most else None


def refusal(sample: Sample) -> str | None:
    """Opens with an English phrase of those who decline."""
    return "refusal" if REFUSALS.search(sample.completion[:OPENING].replace("’", "'")) else None


def pattern(sample: Sample, match: re.Pattern | None, reject: re.Pattern | None) -> str | None:
    """Lacks an expression, or has one."""
    if match is not None and not match.search(sample.completion):
        return "no_match"
    return "rejected" if reject is not None and reject.search(sample.completion) else None


def in_language(sample: Sample, languages: frozenset[str]) -> str | None:
    """In another language than those wanted."""
    return None if is_in(sample.completion, languages) else "language"


def unlikely(sample: Sample, least: float) -> str | None:
    """The teacher itself found its answer too unlikely; an answer without logprobs cannot be judged."""
    if sample.logprob is None:
        return "no_logprobs"
    return "unlikely" if sample.logprob < least else None


class Duplicate:
    """The same answer to the same prompt was kept before. 16 bytes a sample are remembered.

    A history that the teacher wrote is part of the prompt, and no part of its id.
    """

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, sample: Sample) -> str | None:
        told = [message["content"] for message in sample.prompt if message["role"] == "assistant"]
        text = "\0".join([sample.prompt_id, sample.completion, *told])
        key = blake2b(text.encode(), digest_size=16).digest()
        if key in self.seen:
            return "duplicate"
        self.seen.add(key)
        return None


def filters(settings: Dataset) -> list[Filter]:
    """What `settings` asks for. `Duplicate` comes last: it remembers what the others let through."""
    chosen: list[Filter] = []
    if not settings.keep_length:
        chosen.append(length)
    chosen.append(empty)
    if settings.quality is not None:
        chosen += _quality(settings.quality)
    if settings.verifier is not None:
        chosen.append(verifier(settings.verifier))
    if not settings.keep_duplicates:
        chosen.append(Duplicate())
    return chosen


def _quality(wanted: Quality) -> list[Filter]:
    chosen: list[Filter] = []
    if wanted.min_characters is not None or wanted.max_characters is not None:
        chosen.append(partial(size, low=wanted.min_characters, high=wanted.max_characters))
    if wanted.match is not None or wanted.reject is not None:
        match, reject = (expression and re.compile(expression) for expression in (wanted.match, wanted.reject))
        chosen.append(partial(pattern, match=match, reject=reject))
    if wanted.languages is not None:
        chosen.append(partial(in_language, languages=frozenset(wanted.languages)))
    if wanted.refusal:
        chosen.append(refusal)
    if wanted.repetition is not None:
        chosen.append(partial(repetition, most=wanted.repetition))
    if wanted.min_logprob is not None:
        chosen.append(partial(unlikely, least=wanted.min_logprob))
    return chosen


def first_reason(chosen: list[Filter], sample: Sample) -> str | None:
    """The first filter's reason to drop `sample`; None keeps it."""
    return next((reason for judge in chosen if (reason := judge(sample))), None)


def judge(chosen: Iterable[Filter], samples: list[Sample], pool: Executor) -> list[str | None]:
    """`first_reason` of each, filter by filter; one that is `slow` (a process of its own) runs in the pool."""
    reasons: list[str | None] = [None] * len(samples)
    for each in chosen:
        left = [i for i, reason in enumerate(reasons) if reason is None]
        run = pool.map if getattr(each, "slow", False) else map
        for i, reason in zip(left, run(each, [samples[i] for i in left]), strict=True):
            reasons[i] = reason
    return reasons


def judged(
    samples: list[Sample], reasons: list[str | None], scores: Scores, least: float | None, keep: int | None
) -> list[Sample]:
    """`samples` with the scores of those that are left; the others' reasons are marked.

    least: the lowest score that stays. Where nothing asks for it, and no prompt has more than `keep` samples left,
    their judge is not asked.
    """
    left = [i for i, reason in enumerate(reasons) if reason is None]
    if least is None:
        count = Counter(samples[i].prompt_id for i in left)
        left = [i for i in left if count[samples[i].prompt_id] > (keep or 0)]
    asked = [(samples[i].prompt, samples[i].completion, samples[i].reference) for i in left]
    samples = list(samples)
    for i, score in zip(left, scores(asked), strict=True):
        samples[i] = replace(samples[i], score=score)
        if score is None:
            reasons[i] = "unjudged"
        elif least is not None and score < least:
            reasons[i] = "low_score"
    return samples


def best(samples: list[Sample], reasons: list[str | None], keep: int, by: str) -> None:
    """Mark all but the `keep` best of each prompt's kept samples in `reasons` as not_best.

    by: logprob (the highest mean), judge (the highest score), shortest, or first. Ties go to the earlier sample.
    """
    prompts: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if reasons[i] is None:
            prompts.setdefault(sample.prompt_id, []).append(i)
    order = {
        "logprob": lambda i: -(samples[i].logprob if samples[i].logprob is not None else float("-inf")),
        "judge": lambda i: -(samples[i].score if samples[i].score is not None else float("-inf")),
        "shortest": lambda i: len(samples[i].completion),
        "first": lambda i: i,
    }[by]
    for rows in prompts.values():
        for i in sorted(rows, key=lambda i: (order(i), i))[keep:]:
            reasons[i] = "not_best"
