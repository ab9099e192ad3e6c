"""Which rows become prompts: what is asked of each, and the one reason for which a row is left out.

A row's reason depends on that row and those before it, never on a shuffle or on the batches. Of turns that are
answered one after the other, the first that is left out takes the later ones with it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from distill.config.prompts import Prompts
from distill.errors import DistillError
from distill.text.chat import Messages
from distill.text.language import is_in
from distill.text.sources import Conversation, open_source

PERMUTATIONS = 128


def mixed(streams: list[Iterator[Conversation | None]], weights: list[float]) -> Iterator[Conversation | None]:
    """Rows of several sources, in the proportion of their weights from the first row on.

    weights 2, 1 → a b a a b a a b a …; a source that has ended drops out. Until one has, no source is ever further than
    one row from its share: of those that are behind it, the one whose next row is due first is next. No dice: the order
    is the same always, and a row's place depends on how many rows came before it alone.
    """
    left = dict.fromkeys(range(len(streams)), 0)
    due = 0.0
    while left:
        now = due + 1 / sum(weights[i] for i in left)
        began = {i: rows / weights[i] for i, rows in left.items()}
        i = min(left, key=lambda i: (began[i] >= now, (left[i] + 1) / weights[i], began[i], i))
        try:
            row = next(streams[i])
        except StopIteration:
            del left[i]
            continue
        due = now
        left[i] += 1
        yield row


def with_system(row: Conversation | None, system: str | None) -> Conversation | None:
    """The prompt under a system message of ours; one that it has stays."""
    if row is None or system is None or row.messages[0]["role"] == "system":
        return row
    earlier = tuple(with_system(turn, system) for turn in row.earlier)
    return replace(row, messages=[{"role": "system", "content": system}, *row.messages], earlier=earlier)


def normalized(text: str) -> str:
    """What remains of a text when case, width and white space are no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Selected:
    """What stays of a row (one turn, several that are answered one after the other, or none) and what does not."""

    turns: tuple[Conversation, ...]
    dropped: Mapping[str, int]

    @property
    def read(self) -> int:
        """The prompts that the row has."""
        return len(self.turns) + sum(self.dropped.values())


class Selection:
    """Says of one row after the other what stays of it, and why the rest is left out."""

    def __init__(self, prompts: Prompts):
        self.reasons: list[Callable[[Conversation], str | None]] = []  # of a turn
        self.whole: list[Callable[[Conversation], str | None]] = []  # of all turns that are left, by the last one
        if prompts.exclude:
            self.reasons.append(Contamination(prompts))
        if filters := prompts.filters:
            low, high = filters.min_characters, filters.max_characters
            self.reasons += [
                lambda row: "short" if low is not None and len(_asked(row)) < low else None,
                lambda row: "long" if high is not None and len(_asked(row)) > high else None,
            ]
            if filters.match is not None:
                match = re.compile(filters.match)
                self.reasons.append(lambda row: None if match.search(_asked(row)) else "no_match")
            if filters.reject is not None:
                reject = re.compile(filters.reject)
                self.reasons.append(lambda row: "rejected" if reject.search(_asked(row)) else None)
            if filters.languages is not None:
                known = frozenset(filters.languages)
                self.reasons.append(lambda row: None if is_in(_asked(row), known) else "language")
        if prompts.sample is not None:
            self.whole.append(Sampled(prompts.sample, prompts.sample_seed))
        if prompts.duplicates != "keep":
            self.whole.append(Seen(exact=prompts.duplicates == "drop"))
        if prompts.duplicates == "similar":
            self.whole.append(Similar(prompts.similarity))

    def __call__(self, row: Conversation | None) -> Selected:
        if row is None:
            return Selected((), {"malformed": 1})
        turns, dropped = row.turns, {}
        for i, turn in enumerate(turns):
            if reason := _first(self.reasons, turn):
                turns, dropped = turns[:i], {reason: len(turns) - i}
                break
        if turns and (reason := _first(self.whole, turns[-1])):
            turns, dropped = (), Counter(dropped) + Counter({reason: len(turns)})
        return Selected(turns, dropped)


def _first(judges: Iterable[Callable[[Conversation], str | None]], row: Conversation) -> str | None:
    """The first one's reason to leave `row` out."""
    return next((reason for judge in judges if (reason := judge(row))), None)


class Contamination:
    """The question occurs in an evaluation set, whatever its system message and history there."""

    def __init__(self, prompts: Prompts):
        self.known: set[bytes] = set()
        for source in prompts.exclude:
            before = len(self.known)
            self.known |= {_key(_asked(row)) for row in open_source(source).conversations if row}
            if len(self.known) == before:
                raise DistillError(f"prompts.exclude: {source.source} has no prompt to look for: check its columns")

    def __call__(self, row: Conversation) -> str | None:
        return "contamination" if _key(_asked(row)) in self.known else None


class Sampled:
    """A share of the prompts, drawn by hash: a prompt's fate depends on itself and the seed alone."""

    def __init__(self, share: float, seed: int):
        self.below, self.seed = share * 2**64, seed

    def __call__(self, row: Conversation) -> str | None:
        drawn = blake2b(f"{self.seed} {row.id}".encode(), digest_size=8).digest()
        return None if int.from_bytes(drawn, "big") < self.below else "not_sampled"


class Seen:
    """An equal prompt came before; or, not `exact`, one that differs in case, width or white space only."""

    def __init__(self, exact: bool):
        self.exact = exact
        self.seen: set[bytes] = set()

    def __call__(self, row: Conversation) -> str | None:
        key = row.id.encode() if self.exact else _key(_whole(row.messages))
        if key in self.seen:
            return "duplicate"
        self.seen.add(key)
        return None


class Similar:
    """A prompt came before that shares `threshold` of its runs of three words: MinHash of 128 permutations.

    Broder, On the resemblance and containment of documents, 1997. Candidates come from bands of the signatures and
    count only when the signatures agree in that share of their places.
    """

    def __init__(self, threshold: float):
        from rensa import RMinHash, RMinHashLSH

        self.threshold = threshold
        # Few bands of many rows find only what is very similar: as few as still meet the threshold.
        bands = next(b for b in (4, 8, 16, 32, 64, 128) if (1 / b) ** (b / PERMUTATIONS) <= max(threshold - 0.1, 0.01))
        self.index = RMinHashLSH(threshold, PERMUTATIONS, bands)
        self.known: list[RMinHash] = []
        self.make = lambda: RMinHash(PERMUTATIONS, 0)

    def __call__(self, row: Conversation) -> str | None:
        mine = self.make()
        mine.update(list(shingles(_whole(row.messages))))
        if any(mine.jaccard(self.known[other]) >= self.threshold for other in self.index.query(mine)):
            return "similar"
        self.index.insert(len(self.known), mine)
        self.known.append(mine)
        return None


def shingles(text: str) -> Iterable[str]:
    """Its runs of three words, normalized; of a shorter text the words themselves."""
    words = normalized(text).split()
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)} or set(words)


def _asked(row: Conversation) -> str:
    return row.messages[-1]["content"]


def _whole(messages: Messages) -> str:
    return "\n".join(f"{message['role']} {message['content']}" for message in messages)


def _key(text: str) -> bytes:
    return blake2b(normalized(text).encode(), digest_size=16).digest()
