"""The same answers in the tokens of two models, cut where both cut: what objective `aligned_logits` trains on.

teacher  Par|is| is| big|</s>      spans  Paris | is | big| the end
student  Paris| is| b|ig|<eos>     tokens  2:1    1:1  1:2    1:1
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from distill.data.masking import CHUNK, Examples, answered, none_left
from distill.text.chat import Messages, Placed, Template, placed_tokens
from distill.text.spelling import Shared, Spelling, spellings
from distill.text.tokenizer import Tokenizer

ONE, MANY, APART = 1, 2, 3
"""Kinds of a span: a token of each side; more tokens on a side; first tokens that are not of one class, as where one
template writes a space before the answer and the other does not."""
NOWHERE = -1


class Span(NamedTuple):
    """A stretch of text that both sides begin and end a token with: first token of each and their number."""

    student: int
    count: int
    teacher: int
    their_count: int
    kind: int


@dataclass(frozen=True)
class Aligned:
    """Some examples in the teacher's tokens: example i is `ids[offsets[i]:offsets[i + 1]]`, and its spans are rows
    (`Span`, tokens counted from the example's first) `spans[bounds[i]:bounds[i + 1]]`."""

    ids: Int[np.ndarray, "N"]
    offsets: Int[np.ndarray, "E"]
    spans: Int[np.ndarray, "S 5"]
    bounds: Int[np.ndarray, "E"]

    @property
    def lengths(self) -> Int[np.ndarray, "E"]:
        """The teacher's tokens of each example."""
        return np.diff(self.offsets)

    def of(self, example: int) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "S 5"]]:
        """Ids and spans of an example."""
        tokens, spans = (slice(*ends[example : example + 2]) for ends in (self.offsets, self.bounds))
        return self.ids[tokens], self.spans[spans]

    def taken(self, chosen: np.ndarray) -> "Aligned":
        """Those of some examples (bool, one an example)."""
        return gathered([self.of(int(i)) for i in np.flatnonzero(chosen)])

    @staticmethod
    def joined(parts: "Sequence[Aligned]") -> "Aligned":
        """The examples of all parts."""
        return gathered([part.of(i) for part in parts for i in range(len(part.lengths))])


def gathered(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Aligned:
    """Ids and spans of each example as `Aligned`."""
    ids, spans = zip(*examples, strict=True)
    ends = (np.cumsum([0, *map(len, parts)], dtype=np.int64) for parts in (ids, spans))
    offsets, bounds = ends
    return Aligned(np.concatenate(ids), offsets, np.concatenate(spans), bounds)


class Aligner:
    """Two tokenizers, and what their vocabularies share."""

    def __init__(self, teacher: Tokenizer, student: Tokenizer, shared: Shared, template: Template):
        self.teacher, self.student, self.shared, self.template = teacher, student, shared, template
        self.spelled = spellings(teacher), spellings(student)

    def examples(
        self, conversations: Iterable[Messages], max_length: int, context: int, *, overlong: str = "drop",
        name: str = "its data",
    ) -> Examples:  # fmt: skip
        """As `training_examples` of the student's tokenizer, with the same answers in the teacher's tokens.

        Dropped and counted too: what is longer than the teacher's `context`, and what has no span.
        """
        dropped: Counter[str] = Counter()
        ids, masks, theirs, longest, cut, rest = [], [], [], 0, 0, iter(conversations)
        while chunk := list(islice(rest, CHUNK)):
            usable = [messages for messages in chunk if answered(messages)]
            dropped["nothing_to_learn"] += len(chunk) - len(usable)
            for own, other in zip(*(placed_tokens(t, usable, self.template) for t in self.sides), strict=True):
                longest, long = max(longest, len(own.ids)), len(own.ids) > max_length
                if long and overlong == "drop":
                    dropped["overlong"] += 1
                    continue
                if len(other.ids) > context:
                    dropped["overlong_for_teacher"] += 1
                    continue
                spans = [span for span in self.spans(other, own) if span.student + span.count <= max_length]
                if not spans:
                    dropped["nothing_aligned"] += 1
                    continue
                cut += long
                ids.append(np.asarray(own.ids[:max_length], np.int32))
                masks.append((np.arange(len(ids[-1])) >= own.start).astype(np.uint8))
                theirs.append((np.asarray(other.ids, np.int32), np.asarray(spans, np.int32)))
        dropped = +dropped
        if not ids:
            raise none_left(dropped, longest, max_length, name)
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return Examples(
            np.concatenate(ids), np.concatenate(masks), offsets, dict(sorted(dropped.items())), (), cut,
            aligned=gathered(theirs),
        )  # fmt: skip

    @property
    def sides(self) -> tuple[Tokenizer, Tokenizer]:
        """Student's and teacher's."""
        return self.student, self.teacher

    def spans(self, teacher: Placed, student: Placed) -> list[Span]:
        """The smallest spans of an answer whose ends are ends of a token on both sides, the end of the turn among them.

        A span with a token that has no class is left out, and the tokens behind the last common end are.
        """
        if teacher.answer is None or student.answer is None:
            return []
        t, s = (_first_of_answer(side) for side in (teacher, student))
        theirs, own = (
            {at: last + 1 for last, at in enumerate(cuts(side, first, spelled), first) if at != NOWHERE}
            for side, first, spelled in zip((teacher, student), (t, s), self.spelled, strict=True)
        )
        found = []
        for at in sorted(theirs.keys() & own.keys()):
            span = Span(s, own[at] - s, t, theirs[at] - t, 0)
            t, s = theirs[at], own[at]
            if span.student and span.teacher:  # a first token is never a target
                kind = self._kind(teacher.ids[span.teacher : t], student.ids[span.student : s])
                found += [span._replace(kind=kind)] if kind else []
        return found

    def _kind(self, teacher: Sequence[int], student: Sequence[int]) -> int:
        """The kind of a span with these tokens; 0 where one of them has no class."""
        classes = [side.of[list(ids)] for side, ids in zip(self.shared[:2], (teacher, student), strict=True)]
        if min(side.min() for side in classes) < 0:
            return 0
        if classes[0][0] != classes[1][0]:
            return APART
        if len(teacher) == len(student) == 1:
            return ONE
        # A side that says all of it in one token has others of its class to say instead.
        whole = any(len(ids) == 1 and side.roots[side.of[ids[0]]] == ids[0]
                    for side, ids in zip(self.shared[:2], (teacher, student), strict=True))  # fmt: skip
        return APART if whole else MANY


def _first_of_answer(placed: Placed) -> int:
    """The first token that has some of the answer: what a template writes before it need not be the same text."""
    return next((i for i in range(placed.start, len(placed.ids)) if placed.places[i][1] > placed.answer[0]), 0)


def cuts(placed: Placed, start: int, spelled: Sequence[Spelling]) -> list[int]:
    """Where in the answer each token from `start` on ends, in bytes; NOWHERE for one within a character whose bytes
    are not known. What stands behind the answer is one piece, and ends a byte behind it."""
    first, last = placed.answer
    sizes = [0, *accumulate(len(letter.encode()) for letter in placed.text[first:last])]

    def at(character: int) -> int:
        return sizes[min(max(character - first, 0), last - first)]

    ids, places = placed.ids[start:], placed.places[start:]
    found: list[int] = []
    for i, j in _runs(places):
        begin, stop = places[i][0], places[j][1]
        if begin >= last:
            found += [NOWHERE] * (j - i) + [sizes[-1] + 1 if j == len(ids) - 1 else NOWHERE]
            continue
        ends = list(accumulate(len(word) if isinstance(word := spelled[k], bytes) else 0 for k in ids[i : j + 1]))
        whole = first <= begin and stop <= last and ends[-1] == at(stop) - at(begin)
        found += [at(begin) + end if whole else NOWHERE for end in ends[:-1]] + [at(stop)]
    return found


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First and last of the tokens that share a character with the next: pieces of one are each placed at all of it."""
    first = 0
    for i in range(len(places)):
        if i + 1 == len(places) or places[i + 1][0] >= places[i][1]:
            yield first, i
            first = i + 1
