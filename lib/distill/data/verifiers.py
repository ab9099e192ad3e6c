"""Answers that can be checked: against a reference, as a number, by a task's scorer, or by running them."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from distill.config.dataset import Verifier
from distill.data.reasoning import ReasoningGym
from distill.data.sandbox import Limits, run_python
from distill.text.answers import last_number, same_answer

FENCE = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def exact_match(sample: Any) -> str | None:
    """Not the reference; a sample without one cannot be judged."""
    if sample.reference is None:
        return "no_reference"
    return None if same_answer(sample.completion, sample.reference) else "wrong"


def numeric(sample: Any) -> str | None:
    """Its last number is not the reference's last number; `1,000.0` and `1000` are the same one."""
    wanted = None if sample.reference is None else last_number(sample.reference)
    if wanted is None:
        return "no_reference"
    return None if last_number(sample.completion) == wanted else "wrong"


class Code:
    """Its last block of Python fails the reference, which is Python too: assertions that are run after it."""

    slow = True

    def __init__(self, limits: Limits):
        self.limits = limits

    def __call__(self, sample: Any) -> str | None:
        if sample.reference is None:
            return "no_reference"
        blocks = FENCE.findall(sample.completion)
        program = blocks[-1] if blocks else sample.completion
        return run_python(f"{program}\n{sample.reference}\n", self.limits)


def verifier(settings: Verifier) -> Callable[[Any], str | None]:
    """The one that is named."""
    known: dict[str, Callable[[], Callable[[Any], str | None]]] = {
        "exact_match": lambda: exact_match,
        "numeric": lambda: numeric,
        "code": partial(Code, Limits(settings.seconds, settings.megabytes)),
        "reasoning_gym": partial(ReasoningGym, settings),
    }
    return known[settings.name]()
