"""Turns of a conversation that are asked one after the other, each with the teacher's own answers before it.

A prompt with `follows` has no token ids of its own: what it asks is written here for each sample, once that sample of
the turn before it is there. Sample 1 of a turn goes on from sample 1 of the turn before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.serving.journal import Sample, entry_name
from distill.text.chat import Messages, Template, prompts_tokens
from distill.text.tokenizer import Tokenizer, load_tokenizer

Place = tuple[int, int]
"""A row of the batch and a sample of it."""
OVERLONG, UNANSWERED = "overlong", "unanswered"


@dataclass(frozen=True)
class Turn:
    """A prompt as a sample asks it: `messages` end with the turn to answer, `name` is what a journal calls it."""

    messages: Messages
    ids: list[int]
    name: str


def rounds(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Rows that can be asked together: those that follow none, then those that follow these, and so on.

    A prompt comes right behind the one that it follows, as the batch's file has them; else it is a `DistillError`.
    """
    found: list[list[int]] = []
    depth = -1
    for i, row in enumerate(rows):
        before = row.get("follows")
        if before is not None and (i == 0 or rows[i - 1]["prompt_id"] != before):
            raise DistillError(
                f"prompt {row['prompt_id']} follows {before}, which does not stand before it: delete the prompts' "
                "files, and the next run makes them again"
            )
        depth = 0 if before is None else depth + 1
        if depth == len(found):
            found.append([])
        found[depth].append(i)
    return found


class History:
    """Writes what the samples of a round ask."""

    def __init__(self, params: Path, template: Template, longest: int):
        """longest: tokens that a prompt may have."""
        self.params, self.template, self.longest = params, template, longest

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.params / "tokenizer")

    def turns(
        self,
        rows: Sequence[dict[str, Any]],
        places: Sequence[Place],
        before: dict[Place, Turn],
        answer: Callable[[Place], Sample | None],
    ) -> tuple[dict[Place, Turn], list[tuple[Place, str]]]:
        """What is asked at each of `places`, and where nothing is, with the reason.

        before: the turns of the rounds before; `answer` gives what was answered there, or None. An answer that is
        cut off or empty is no history, and a history may make a prompt too long.
        """
        found, left_out, written = {}, [], {}
        first = {row: _turn(rows[row]) for row, _ in places if rows[row].get("follows") is None}
        for place in places:
            row, number = place
            if row in first:
                found[place] = first[row]
                continue
            last = row - 1, number
            sample = answer(last) if last in before else None
            if sample is None or sample.finish_reason == "length" or not sample.text.strip():
                left_out.append((place, UNANSWERED))
                continue
            asked = rows[row]["messages"][len(rows[row - 1]["messages"]) :]
            asked = [message for message in asked if message["role"] != "assistant"]  # the dataset's own answer
            written[place] = [*before[last].messages, {"role": "assistant", "content": sample.text}, *asked]
        ids_of = prompts_tokens(self.tokenizer, list(written.values()), self.template) if written else []
        for (place, messages), ids in zip(written.items(), ids_of, strict=True):
            if len(ids) > self.longest:
                left_out.append((place, OVERLONG))
            else:
                found[place] = _turn(rows[place[0]], messages, ids)
        return found, sorted(left_out)


def _turn(row: dict[str, Any], messages: Messages | None = None, ids: list[int] | None = None) -> Turn:
    """A row's own messages and ids, or those given."""
    ids = row["prompt_token_ids"] if ids is None else ids
    return Turn(messages or row["messages"], ids, entry_name(row["prompt_id"], ids))
