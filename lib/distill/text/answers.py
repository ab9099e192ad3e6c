"""What an answer says: when two are the same, the number it ends with, and what comes before it as thought."""

import re
from decimal import Decimal

NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-−]?\.\d+")
THOUGHT = re.compile(r"^.*</think>\s*", re.DOTALL)


def same_answer(answer: str, reference: str) -> bool:
    """Exact match, white space around both aside: for filters as for scores."""
    return answer.strip() == reference.strip()


def last_number(text: str) -> Decimal | None:
    """The last number in a text: `so 1,200.50 $` → 1200.5; None where there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")).normalize() if found else None


def without_thought(text: str) -> str:
    """A completion after its `</think>`; an unfinished thought leaves nothing. The opening may be the prompt's.

    `<think>hm</think>\\n\\nyes` → `yes`; `hm</think>yes` → `yes`; `<think>hm` → ``
    """
    if "</think>" in text:
        return THOUGHT.sub("", text, count=1)
    return "" if text.lstrip().startswith("<think>") else text
