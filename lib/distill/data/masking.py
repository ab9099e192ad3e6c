"""Conversations as training examples: token ids and what of them is learned, in flat arrays."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from distill.errors import DistillError
from distill.text.chat import Messages, Template, examples_tokens
from distill.text.thoughts import without_thoughts
from distill.text.tokenizer import Tokenizer
from distill.text.turns import turns_tokens

if TYPE_CHECKING:
    from distill.data.aligned import Aligned
    from distill.data.stored import Logits

CHUNK = 1024  # conversations tokenized in one go


@dataclass(frozen=True)
class Examples:
    """Example i is `ids[offsets[i]:offsets[i + 1]]`, with `mask` 1 where a token is learned.

    `dropped` counts what did not become an example: overlong, nothing_to_learn; `cut` those that lost their end
    since they were too long. `sources` has the number of
    examples and the weight of each source that they came from, in order; one source when left out. `logits` has a
    row for each learned token (data/stored.py), `aligned` the same examples in the teacher's tokens (data/aligned.py).
    """

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    dropped: Mapping[str, int]
    sources: tuple[tuple[int, float], ...] = ()
    cut: int = 0
    logits: "Logits | None" = None
    aligned: "Aligned | None" = None

    @property
    def parts(self) -> tuple[tuple[int, float], ...]:
        """Number of examples and weight of each source."""
        return self.sources or ((len(self), 1.0),)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int32) and mask (uint8) of example i."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.ids[part], self.mask[part]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.offsets)

    @cached_property
    def learned(self) -> np.ndarray:
        """Tokens of each example that are targets with mask 1: its first token never is one."""
        mask = self.mask.astype(np.int64)
        mask[self.offsets[:-1]] = 0
        return np.add.reduceat(mask, self.offsets[:-1])

    def taken(self, chosen: np.ndarray) -> "Examples":
        """Those for which `chosen` (bool, one an example) is so, in their order."""
        tokens = np.repeat(chosen, self.lengths)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64)
        ends = np.cumsum([count for count, _ in self.parts])[:-1]
        sources = tuple(
            (int(part.sum()), weight) for part, (_, weight) in zip(np.split(chosen, ends), self.parts, strict=True)
        )
        beside = [part and part.taken(chosen) for part in (self.logits, self.aligned)]
        return Examples(self.ids[tokens], self.mask[tokens], offsets, self.dropped, sources, self.cut, *beside)

    def digest(self) -> str:
        """SHA-256 (hex) over the arrays and the sources."""
        total = hashlib.sha256(repr(self.parts).encode())
        for array in (self.ids, self.mask, self.offsets):
            total.update(np.ascontiguousarray(array).tobytes())
        if self.logits is not None:
            total.update(self.logits.digest.encode() + self.logits.starts.tobytes())
        if self.aligned is not None:
            for array in (self.aligned.ids, self.aligned.offsets, self.aligned.spans, self.aligned.bounds):
                total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


def training_examples(
    conversations: Iterable[Messages],
    tokenizer: Tokenizer,
    template: Template,
    max_length: int,
    *,
    loss_on: Literal["completion", "assistant"] = "completion",
    thoughts: Literal["learn", "context"] = "learn",
    overlong: Literal["drop", "cut"] = "drop",
    name: str = "its data",
) -> Examples:
    """Tokenize conversations of which the last turn, the assistant's, is learned, or every turn of the assistant's.

    Dropped and counted: one that does not end with an assistant turn with text in it, one that has nothing to
    learn, and one of more than `max_length` tokens, which would lose its end; unless `overlong` has it cut there,
    counted too. With `thoughts: context` what comes before `</think>` is not learned. None left is a `DistillError`
    that names the source.
    """
    tokens_of = examples_tokens if loss_on == "completion" else turns_tokens
    dropped: Counter[str] = Counter()
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    longest = cut = 0
    rest = iter(conversations)
    while chunk := list(islice(rest, CHUNK)):
        usable = [messages for messages in chunk if answered(messages)]
        dropped["nothing_to_learn"] += len(chunk) - len(usable)
        for tokens, mask in tokens_of(tokenizer, usable, template):
            longest, long = max(longest, len(tokens)), len(tokens) > max_length
            if long and overlong == "drop":
                dropped["overlong"] += 1
                continue
            tokens, mask = tokens[:max_length], mask[:max_length]
            if thoughts == "context":
                mask = without_thoughts(tokenizer, tokens, mask)
            if not any(mask[1:]):  # the first token is never a target
                dropped["nothing_to_learn"] += 1
            else:
                cut += long
                ids.append(np.asarray(tokens, np.int32))
                masks.append(np.asarray(mask, np.uint8))
    dropped = +dropped
    if not ids:
        raise none_left(dropped, longest, max_length, name)
    offsets = np.cumsum([0, *(len(tokens) for tokens in ids)], dtype=np.int64)
    return Examples(np.concatenate(ids), np.concatenate(masks), offsets, dict(sorted(dropped.items())), (), cut)


def none_left(dropped: Mapping[str, int], longest: int, max_length: int, name: str) -> DistillError:
    """What is said where no conversation became an example."""
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "no rows"
    return DistillError(
        f"no example is left to train on ({counts}; the longest has {longest} tokens, max_length is "
        f"{max_length}): raise the stage's max_length, or look at {name}"
    )


def joined(sources: Sequence[Examples], weights: Sequence[float | None]) -> Examples:
    """Examples of all sources; without weights each has its share by its size."""
    if len(sources) == 1:
        return sources[0]
    dropped = sum((Counter(source.dropped) for source in sources), Counter())
    starts = np.cumsum([0, *(len(source.ids) for source in sources)])
    offsets = [source.offsets[1:] + start for source, start in zip(sources, starts, strict=False)]
    return Examples(
        np.concatenate([source.ids for source in sources]),
        np.concatenate([source.mask for source in sources]),
        np.concatenate([[0], *offsets]).astype(np.int64),
        dict(sorted(dropped.items())),
        tuple(zip(map(len, sources), weights, strict=True)) if all(weights) else (),
        sum(source.cut for source in sources),
        aligned=sources[0].aligned and sources[0].aligned.joined([source.aligned for source in sources]),
    )


def answered(messages: Messages) -> bool:
    """Whether a conversation ends with an assistant turn that has text in it."""
    return len(messages) > 1 and messages[-1]["role"] == "assistant" and bool(messages[-1]["content"].strip())
