"""Reasons to leave a sample out of the training data, asked in the order in which they stand here."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from distill.config import Dataset
from distill.text.answers import same_answer


@dataclass(frozen=True)
class Sample:
    """What a filter may look at."""

    prompt_id: str
    completion: str
    finish_reason: str
    reference: str | None


Filter = Callable[[Sample], str | None]
"""The reason to drop a sample, or None."""


def length(sample: Sample) -> str | None:
    """Cut off by max_target_length: its end was never written, so it teaches not to end."""
    return "length" if sample.finish_reason == "length" else None


def empty(sample: Sample) -> str | None:
    """Nothing but white space."""
    return None if sample.completion.strip() else "empty"


def exact_match(sample: Sample) -> str | None:
    """Not the reference; a sample without one cannot be judged."""
    if sample.reference is None:
        return "no_reference"
    return None if same_answer(sample.completion, sample.reference) else "wrong"


class Duplicate:
    """The same answer to the same prompt was kept before. 16 bytes a sample are remembered."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, sample: Sample) -> str | None:
        key = blake2b(f"{sample.prompt_id}\0{sample.completion}".encode(), digest_size=16).digest()
        if key in self.seen:
            return "duplicate"
        self.seen.add(key)
        return None


VERIFIERS: dict[str, Filter] = {"exact_match": exact_match}


def filters(settings: Dataset) -> list[Filter]:
    """What `settings` asks for. `Duplicate` comes last: it remembers what the others let through."""
    chosen: list[Filter] = []
    if not settings.keep_length:
        chosen.append(length)
    chosen.append(empty)
    if settings.verifier is not None:
        chosen.append(VERIFIERS[settings.verifier.name])
    if not settings.keep_duplicates:
        chosen.append(Duplicate())
    return chosen


def first_reason(chosen: list[Filter], sample: Sample) -> str | None:
    """The first filter's reason to drop `sample`; None keeps it."""
    return next((reason for judge in chosen if (reason := judge(sample))), None)
