"""Prompt batches: fixed slices of a dataset, tokenized once, each with a hash of what is in it.

Batch i is rows [i·B, (i+1)·B) of the source, so a longer dataset or a larger `num_batches` leaves the batches
that were there as they were. A shuffle permutes inside blocks of `shuffle_block` batches; a block that the
dataset fills never changes again. Whatever leaves a row out is decided by that row and those before it.

With turns `each_own` a row of the source is a whole conversation, so that all its turns are in one batch, each a
prompt of its own. A turn that has earlier ones names the one before it in `follows`, and has no token ids yet: its
history is written when the teacher has answered that one.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from pydantic_core import to_json  # a quarter of the standard library's time

from distill import SCHEMA_VERSION
from distill.config.prompts import Prompts, Source
from distill.errors import DistillError
from distill.files import replacing
from distill.text.chat import prompts_tokens
from distill.text.selection import Selected, Selection, mixed, with_system
from distill.text.sources import Conversation, nothing_in, open_source
from distill.text.tokenizer import Tokenizer

Row = dict[str, Any]


def index_prompts(
    prompts: Prompts, tokenizer: Tokenizer, max_prefill_length: int, context: int, work: Path
) -> dict[str, Any]:
    """Write the rows of every batch to `work`/{batch}.jsonl and return what index.json holds.

    `context` is the most tokens the teacher can see; a prompt must leave room in it for an answer.
    A dataset without a usable prompt, or with fewer batches than `num_batches`, is a `DistillError`.
    """
    limit = Limit(prompts.overlong, max_prefill_length, context)
    shortest = prompts.filters.min_tokens or 0 if prompts.filters else 0
    origin, conversations = _open(prompts)
    batches: dict[str, dict[str, Any]] = {}
    read = 0
    for entries in _batches(prompts, conversations):
        name = f"{len(batches):04d}"
        rows, dropped = _rows(entries, tokenizer, prompts.chat_template, limit, shortest)
        lines = b"".join(to_json(row) + b"\n" for row in rows)
        with replacing(work / f"{name}.jsonl") as tmp:
            tmp.write_bytes(lines)
        batches[name] = {
            "hash": hashlib.sha256(lines).hexdigest(),
            "read": sum(entry.read for entry in entries),
            "kept": len(rows),
            "dropped": dict(sorted(dropped.items())),
        }
        read += batches[name]["read"]
    _refuse(prompts, batches, read)
    for stale in set(work.glob("*.jsonl")) - {work / f"{name}.jsonl" for name in batches}:
        stale.unlink()
    told = {*Source.model_fields, "mix", "exclude"}
    chosen = prompts.model_dump(mode="json", exclude_defaults=True, exclude=told)
    chosen |= {"exclude": [source.source for source in prompts.exclude]} if prompts.exclude else {}
    return {"schema": SCHEMA_VERSION, "source": origin, "chosen": chosen, "batches": batches}


class Limit:
    """The longest prompt that is taken, and what becomes of a longer one."""

    def __init__(self, overlong: str, max_prefill_length: int, context: int):
        self.fail = overlong == "fail"
        self.tokens = min(max_prefill_length, context - 1)
        self.name = f"max_prefill_length is {max_prefill_length}"
        self.remedy = "raise it"
        if context - 1 < max_prefill_length:
            self.name = f"the teacher's context is {context}, of which an answer needs one at least"
            self.remedy = "shorten it"

    def exceeded(self, name: str, tokens: int) -> bool:
        """Whether a prompt is to be dropped; with `overlong: fail` that is a `DistillError`."""
        if tokens > self.tokens and self.fail:
            raise DistillError(
                f"prompt {name} has {tokens} tokens, {self.name}: "
                f"{self.remedy} or let the filter drop it (prompts.overlong: drop)"
            )
        return tokens > self.tokens


def _open(prompts: Prompts) -> tuple[dict[str, Any], Iterator[Conversation | None]]:
    """What is read, and its conversations, those of several sources mixed."""
    opened = [open_source(source, prompts.turns) for source in prompts.sources]
    if not prompts.mix:
        origin, conversations = opened[0].origin, opened[0].conversations
    else:
        weights = [source.weight for source in prompts.mix]
        shares = " + ".join(f"{source.weight:g} × {source.source}" for source in prompts.mix)
        origin = {"source": shares, "mix": [each.origin for each in opened]}
        conversations = mixed([each.conversations for each in opened], weights)
    return origin, (with_system(row, prompts.system) for row in conversations)


def _batches(prompts: Prompts, conversations: Iterator[Conversation | None]) -> Iterator[list[Selected]]:
    """What stays of each batch's rows."""
    size, block = prompts.batch_size, prompts.batch_size
    if prompts.shuffle_seed is not None:
        block *= prompts.shuffle_block
    left = None if prompts.num_batches == "all" else prompts.num_batches
    selection = Selection(prompts)
    first = 0
    while (left is None or left > 0) and (rows := list(islice(conversations, block))):
        entries = [selection(row) for row in rows]
        if prompts.shuffle_seed is not None:
            entries = [entries[i] for i in shuffled(len(entries), prompts.shuffle_seed, first)]
        slices = [entries[i : i + size] for i in range(0, len(entries), size)]
        yield from slices[:left]
        left = None if left is None else left - len(slices)
        first += len(rows)


def shuffled(count: int, seed: int, first: int) -> list[int]:
    """A permutation of `count` rows of which the first is row `first` of the source.

    By hash, not by a generator: the same for every library version, and rows keep their relative order when
    the last block grows.
    """
    return sorted(range(count), key=lambda i: hashlib.blake2b(f"{seed} {first + i}".encode(), digest_size=16).digest())


def _rows(
    entries: list[Selected], tokenizer: Tokenizer, template: str, limit: Limit, shortest: int
) -> tuple[list[Row], Counter[str]]:
    """The rows of one batch that are kept, and how many are not for which reason."""
    dropped: Counter[str] = Counter()
    for entry in entries:
        dropped.update(entry.dropped)
    asked = [entry.turns for entry in entries if entry.turns]
    ids = prompts_tokens(tokenizer, [turns[0].messages for turns in asked], template)
    rows: list[Row] = []
    for turns, tokens in zip(asked, ids, strict=True):
        name = turns[0].id
        if limit.exceeded(name, len(tokens)):
            dropped["overlong"] += len(turns)
            continue
        if len(tokens) < shortest:
            dropped["short"] += len(turns)
            continue
        rows.append(_row(turns[0], tokens))
        for before, turn in pairwise(turns):
            rows.append(_row(turn, None) | {"follows": before.id})
    return rows, dropped


def _row(turn: Conversation, tokens: list[int] | None) -> Row:
    return {
        "prompt_id": turn.id,
        "messages": turn.messages,
        "prompt_token_ids": tokens,
        "reference": turn.reference,
        "original": turn.original,
    }


def _refuse(prompts: Prompts, batches: dict[str, dict[str, Any]], read: int) -> None:
    """Say what is wrong when nothing is left, or less than was asked for."""
    dropped = sum((Counter(batch["dropped"]) for batch in batches.values()), Counter())
    if dropped["malformed"] == read:
        raise DistillError(nothing_in(prompts.sources[0], read))
    if sum(dropped.values()) == read:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise DistillError(
            f"dataset {prompts.name}: all of its {read} prompts are left out ({counts}): "
            "raise generation.max_prefill_length, loosen prompts.filters, or look at the dataset"
        )
    if prompts.num_batches != "all" and len(batches) < prompts.num_batches:
        raise DistillError(
            f"prompts.num_batches is {prompts.num_batches}, dataset {prompts.name} has {read} rows, "
            f"{len(batches)} batches of {prompts.batch_size}: set it to {len(batches)} or less, or to all"
        )
