"""Which examples are in which row of an endless series of epochs: a pure function of (lengths, seed, epoch)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from distill.data.packing import best_fit
from distill.errors import DistillError


class Rows(Protocol):
    """Rows 0, 1, 2, ... without end; `per_epoch` of them hold every example once."""

    per_epoch: int

    def row(self, number: int) -> np.ndarray:
        """The examples of a row."""

    def learned_before(self, number: int) -> int:
        """How many tokens the rows before this one teach."""


class Source:
    """Rows of one source of data: an example each, or packed."""

    def __init__(self, sizes: np.ndarray, learned: np.ndarray, seed: int, capacity: int | None = None, first: int = 0):
        """sizes: positions that each example takes; learned: tokens that it teaches.

        capacity: positions of a row that several examples share; an example is a row when left out.
        first: number of the source's first example among all.
        """
        self.sizes, self.learned, self.seed, self.first = sizes, learned, seed, first
        self.plan = None if capacity is None else best_fit(np.sort(sizes)[::-1].tolist(), capacity)
        self.per_epoch = len(sizes) if self.plan is None else len(self.plan[1]) - 1
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def row(self, number: int) -> np.ndarray:
        """The examples of a row."""
        epoch, place = divmod(number, self.per_epoch)
        examples, starts, _ = self._epoch(epoch)
        return self.first + examples[starts[place] : starts[place + 1]]

    def learned_before(self, number: int) -> int:
        """How many tokens the rows before this one teach."""
        epochs, rest = divmod(number, self.per_epoch)
        return int(epochs * self.learned.sum() + self._epoch(epochs)[2][rest])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Examples in the order of the epoch's rows, where each row starts, and tokens taught before each."""
        if epoch not in self._epochs:
            order = permutation(len(self.sizes), self.seed, epoch)
            starts = np.arange(len(order) + 1)
            if self.plan is not None:
                items, bounds = self.plan
                by_rank = order[np.argsort(-self.sizes[order], kind="stable")]
                turn = permutation(self.per_epoch, self.seed, epoch, 1)
                starts = np.concatenate([[0], np.cumsum(np.diff(bounds)[turn])])
                order = by_rank[np.concatenate([items[bounds[row] : bounds[row + 1]] for row in turn])]
            taught = np.concatenate([[0], np.cumsum(self.learned[order])])[starts]
            if len(self._epochs) > 1:  # a batch may hold the end of one epoch and the start of the next
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = order, starts, taught
        return self._epochs[epoch]


class Mixture:
    """Rows of several sources, so many of each in every `PERIOD` as their weights say.

    Each source goes through all of its examples before it gives one again, at its own pace.
    """

    PERIOD = 1000

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int):
        self.sources = list(sources)
        self.per_epoch = sum(source.per_epoch for source in self.sources)
        edges = np.round(np.cumsum(weights) / np.sum(weights) * self.PERIOD).astype(np.int64)
        counts = np.diff(edges, prepend=0)
        if not counts.all():
            raise DistillError(
                f"data has weights {', '.join(f'{weight:g}' for weight in weights)}, one under 1/{self.PERIOD} of "
                "their sum: leave that source out, or give it more"
            )
        turns = np.repeat(np.arange(len(self.sources)), counts)
        self.turns = turns[permutation(self.PERIOD, seed, 0, 2)]
        once = (self.turns[:, None] == np.arange(len(self.sources))[None]).astype(np.int64)
        self.before = np.concatenate([np.zeros((1, len(self.sources)), np.int64), np.cumsum(once, axis=0)])

    def row(self, number: int) -> np.ndarray:
        """The examples of a row."""
        source = self.turns[number % self.PERIOD]
        return self.sources[source].row(int(self._given(number)[source]))

    def learned_before(self, number: int) -> int:
        """How many tokens the rows before this one teach."""
        given = self._given(number)
        return sum(source.learned_before(int(rows)) for source, rows in zip(self.sources, given, strict=True))

    def _given(self, number: int) -> np.ndarray:
        """How many rows each source gave before this one."""
        periods, rest = divmod(number, self.PERIOD)
        return periods * self.before[-1] + self.before[rest]


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """The order of `size` examples in one epoch; another `stream` of the same seed and epoch is unrelated."""
    key = [seed % 2**64, epoch, *([stream] if stream else [])]
    return np.random.Generator(np.random.PCG64(key)).permutation(size)
