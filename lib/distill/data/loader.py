"""Batches for training: an endless shuffled order in which the step alone says where one is."""

from functools import lru_cache

import numpy as np

from distill.data.masking import Examples

MULTIPLE = 8  # batches are padded to a multiple of this


class Loader:
    """Batch `step` is elements step·B to step·B + B - 1 of an endless row of epochs.

    Each epoch is a permutation of all examples that depends on (number of examples, seed, epoch) alone, so
    the position is the step: nothing to save, nothing to restore. A batch may hold the end of one epoch and
    the start of the next; none is ever short.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, length: int | None = None):
        """`length` is T of every batch; by default it holds the longest example."""
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        longest = int(examples.lengths.max()) - 1
        self.length = -(-longest // MULTIPLE) * MULTIPLE if length is None else length
        if self.length < longest:
            raise ValueError(f"length {length} is smaller than the longest input, {longest}")

    @property
    def steps_per_epoch(self) -> float:
        """How many batches hold every example once; seldom whole."""
        return len(self.examples) / self.batch_size

    def learned_before(self, step: int) -> int:
        """How many tokens the batches before `step` teach."""
        epochs, rest = divmod(step * self.batch_size, len(self.examples))
        counts = self.examples.learned
        return int(epochs * counts.sum() + counts[permutation(len(counts), self.seed, epochs)[:rest]].sum())

    def order(self, step: int) -> list[int]:
        """Which examples batch `step` holds."""
        size = len(self.examples)
        first = step * self.batch_size
        return [
            int(permutation(size, self.seed, element // size)[element % size])
            for element in range(first, first + self.batch_size)
        ]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Arrays [B, T]: tokens, targets, positions, segment_ids int32, mask float32.

        prompt [5, 6] answer [7, 2] → tokens 5 6 7, targets 6 7 2, mask 0 1 1, positions 0 1 2,
        segment_ids 1 1 1, and 0 in all of them where padded.
        """
        shape = (self.batch_size, self.length)
        tokens, targets, positions, segments = (np.zeros(shape, np.int32) for _ in range(4))
        mask = np.zeros(shape, np.float32)
        for row, example in enumerate(self.order(step)):
            ids, learned = self.examples[example]
            n = len(ids) - 1
            tokens[row, :n] = ids[:-1]
            targets[row, :n] = ids[1:]
            mask[row, :n] = learned[1:]
            positions[row, :n] = np.arange(n)
            segments[row, :n] = 1
        return {
            "tokens": tokens,
            "targets": targets,
            "mask": mask,
            "positions": positions,
            "segment_ids": segments,
        }


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `size` examples in one epoch."""
    return np.random.Generator(np.random.PCG64([seed % 2**64, epoch])).permutation(size)
