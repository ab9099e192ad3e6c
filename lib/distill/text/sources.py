"""Conversations from a dataset: which columns hold them, and what of a row is asked."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, takewhile
from typing import Any, Literal

from distill.config.prompts import Source
from distill.errors import DistillError
from distill.text.chat import prompt_id
from distill.text.readers import open_dataset

Turns = Literal["last", "first", "each", "each_own"]


@dataclass(frozen=True)
class Conversation:
    """A prompt that ends with the user turn to answer; what the dataset itself answers; what is right.

    earlier: turns of the same conversation that are answered first, each the next one's history.
    """

    messages: list[dict[str, str]]
    original: str | None
    reference: str | None
    earlier: "tuple[Conversation, ...]" = ()

    @cached_property
    def id(self) -> str:
        """`prompt_id` of its messages."""
        return prompt_id(self.messages)

    @property
    def turns(self) -> "tuple[Conversation, ...]":
        """All that is asked of the conversation, in order; itself last."""
        return (*self.earlier, self)


@dataclass(frozen=True)
class Columns:
    """Where a row keeps its conversation: in `messages`, or in `prompt` and perhaps `completion`."""

    messages: str | None
    prompt: str | None
    completion: str | None
    reference: str | None

    @property
    def names(self) -> list[str]:
        return [name for name in (self.messages, self.prompt, self.completion, self.reference) if name]


@dataclass(frozen=True)
class Rows:
    """An opened dataset: `origin` says what is read; `conversations` has what is asked, None where malformed."""

    origin: dict[str, Any]
    conversations: Iterator[Conversation | None]


def read_conversations(source: Source, limit: int | None = None) -> list[Conversation]:
    """The well-formed conversations among the first `limit` rows; none at all is a `DistillError`."""
    rows = list(islice(open_source(source).conversations, limit))
    conversations = [row for row in rows if row is not None]
    if not conversations:
        raise DistillError(nothing_in(source, len(rows)))
    return conversations


def nothing_in(source: Source, rows: int) -> str:
    """The complaint about a dataset without one usable row."""
    if rows == 0:
        return f"dataset {source.source} (split {source.split}) is empty: nothing to ask"
    return (
        f"dataset {source.source} has {rows} rows and none is a conversation: a prompt is text, or messages "
        "with role and content of which one is a user turn with text in it"
    )


def open_source(source: Source, turns: Turns = "last") -> Rows:
    """Open a dataset and find its columns. Rows are read when asked for; a local one needs no network."""
    origin = {
        "source": source.source,
        "config": source.config,
        "split": source.split,
        "revision": source.revision,
    }
    opened = open_dataset(source)
    if not opened.columns:
        raise DistillError(nothing_in(source, 0))
    columns = find_columns(source, opened.columns)
    if dates := set(columns.names) & opened.dates:
        raise DistillError(
            f"dataset {source.source} column {', '.join(sorted(dates))} is read as dates, not as text: "
            "name its JSONL file, or store the column as strings in Parquet"
        )
    conversations = (one for row in opened.rows for one in asked(row, columns, turns))
    return Rows(origin | opened.origin, conversations)


def find_columns(source: Source, known: Iterable[str]) -> Columns:
    """The columns that `source` names, or those with the usual names; a missing one is a `DistillError`."""
    known = list(known)
    messages, prompt, completion = source.messages, source.prompt, source.completion
    if messages is None and prompt is None:
        if "messages" in known and completion is None:
            messages = "messages"
        elif "prompt" in known:
            prompt = "prompt"
        else:
            raise DistillError(
                f"dataset {source.source} has no column messages or prompt (there is {', '.join(known)}): "
                "name yours in `messages`, or in `prompt` and `completion`"
            )
    if messages is not None and (prompt or completion):
        raise DistillError(
            f"dataset {source.source}: messages ({messages}) holds the whole conversation, "
            "leave out prompt and completion, or leave out messages"
        )
    if prompt is not None and completion is None and "completion" in known:
        completion = "completion"
    columns = Columns(messages, prompt, completion, source.reference)
    if missing := [name for name in columns.names if name not in known]:
        raise DistillError(
            f"dataset {source.source} has no column {' or '.join(missing)} (there is {', '.join(known)})"
        )
    return columns


def conversation(row: dict[str, Any], columns: Columns) -> Conversation | None:
    """The prompt up to its last user turn, and the assistant turn after it; None for a malformed row.

    user a, assistant b, user c, assistant d → messages a b c, original d
    """
    return asked(row, columns, "last")[0]


def asked(row: dict[str, Any], columns: Columns, turns: Turns) -> list[Conversation | None]:
    """What is asked of a row: its last user turn, its first, or each with the history that the dataset has.

    user a, assistant b, user c, assistant d, each → messages a, original b; messages a b c, original d. The
    reference column is of the last turn; the others' reference is what the dataset answers.

    each_own: the same turns as one conversation, the last one with the others as its `earlier`. A malformed turn
    ends it.
    """
    if columns.messages is not None:
        listed, answer = row.get(columns.messages), None
    else:
        listed, answer = row.get(columns.prompt), row.get(columns.completion) if columns.completion else None
        if isinstance(listed, str):
            listed = [{"role": "user", "content": listed}]
    messages = _messages(listed)
    users = [i for i, message in enumerate(messages or []) if message["role"] == "user"]
    if not users:
        return [None]
    ends = dict(zip(users, [*users[1:], len(messages)], strict=True))
    chosen = {"last": users[-1:], "first": users[:1]}.get(turns, users)
    found: list[Conversation | None] = []
    for i in chosen:
        after = messages[i + 1 : ends[i]]
        is_last = i == users[-1]
        text = answer if is_last else None
        if isinstance(text, list):
            after, text = _messages(text) or [], None
        if text is None and len(after) == 1 and after[0]["role"] == "assistant":
            text = after[0]["content"]
        original = _text(text)
        reference = _reference(row.get(columns.reference)) if columns.reference and is_last else original
        blank = not messages[i]["content"].strip()
        found.append(None if blank else Conversation(messages[: i + 1], original, reference))
    if turns != "each_own":
        return found
    whole = list(takewhile(lambda turn: turn is not None, found))
    broken = [None] * (len(found) - len(whole))
    return [replace(whole[-1], earlier=tuple(whole[:-1])), *broken] if whole else broken


def _messages(turns: Any) -> list[dict[str, str]] | None:
    """Role and content of each turn, or None when one has not both as text."""
    if not isinstance(turns, list) or not turns:
        return None
    found = []
    for turn in turns:
        if not isinstance(turn, dict):
            return None
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        if not _is_unicode(role) or not _is_unicode(content):
            return None
        found.append({"role": role, "content": content})
    return found


def _reference(value: Any) -> str | None:
    """An object as JSON, as an entry of a task is one; all else as `_text` has it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else _text(value)


def _text(value: Any) -> str | None:
    """Text as it is, a number as it is written; anything else is no answer."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and _is_unicode(value) else None


def _is_unicode(text: str) -> bool:
    """Whether it can be written: half of a pair of surrogates, which JSON's `\\ud83d` gives, cannot."""
    if text.isascii():  # known without a look
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
