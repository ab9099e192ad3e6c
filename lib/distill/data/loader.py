"""Batches for training: an endless shuffled order in which the step alone says where one is."""

from collections.abc import Sequence

import numpy as np

from distill.data.masking import Examples
from distill.data.rows import Mixture, Rows, Source

MULTIPLE = 8  # rows are padded to a multiple of this


class Loader:
    """Batch `step` is rows step·B to step·B + B - 1 of an endless series of epochs (`data/rows.py`).

    The position is the step: nothing to save, nothing to restore. A batch may hold the end of one epoch and the
    start of the next; none is ever short.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        length: int | None = None,
        *,
        packing: bool = False,
        endless: bool = True,
    ):
        """`length` is T of every batch; by default it holds the longest example. `packing` fills it with several.

        Not `endless`, the rows behind the first epoch are empty.
        """
        self.examples, self.endless = examples, endless
        self.batch_size = batch_size
        longest = int(examples.lengths.max()) - 1
        self.length = _rounded(longest) if length is None else length
        if self.length < longest:
            raise ValueError(f"length {length} is smaller than the longest input, {longest}")
        aligned = examples.aligned
        self.teacher_length = self.length if aligned is None else _rounded(int(aligned.lengths.max()) - 1)
        self.rows = rows_of(examples, seed, self.length if packing else None)

    @property
    def steps_per_epoch(self) -> float:
        """How many batches hold every example once; seldom whole."""
        return self.rows.per_epoch / self.batch_size

    def learned_before(self, step: int) -> int:
        """How many tokens the batches before `step` teach."""
        return self.rows.learned_before(step * self.batch_size)

    def order(self, step: int) -> list[int]:
        """Which examples batch `step` holds, row by row."""
        first = step * self.batch_size
        return [int(i) for row in range(first, first + self.batch_size) for i in self.rows.row(row)]

    def batch(self, step: int, part: slice = slice(None)) -> dict[str, np.ndarray]:
        """Arrays [B, T]: tokens, targets, positions, segment_ids int32, mask float32; or a `part` of their rows.

        prompt [5, 6] answer [7, 2] → tokens 5 6 7, targets 6 7 2, mask 0 1 1, positions 0 1 2,
        segment_ids 1 1 1, and 0 in all of them where padded. A second example of the row goes on behind it
        with positions 0 1 ... and segment_ids 2 2 ...

        Examples with logits have `soft_ids` (int32 or uint16) and `soft_logprobs` (float16) [B, T, k] too, zero where
        mask is, and `soft_vocabulary` [B], the number of ids that they are of. Aligned ones have what `spans` gives.
        """
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)[part]
        there = [self.endless or number < self.rows.per_epoch for number in numbers]
        rows = [self.rows.row(number) if ok else () for number, ok in zip(numbers, there, strict=True)]
        batch = arrays([[self.examples[example] for example in row] for row in rows], self.length)
        beside = _logits(self.examples, rows, batch["mask"].shape)
        if (aligned := self.examples.aligned) is not None:  # such rows are not packed
            beside |= spans([aligned.of(*row) if len(row) else None for row in rows], self.length, self.teacher_length)
        return batch | beside


def arrays(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], length: int) -> dict[str, np.ndarray]:
    """Rows of examples, each (ids, mask), as the arrays [B, length] of `Loader.batch`."""
    shape = (len(rows), length)
    tokens, targets, positions, segments = (np.zeros(shape, np.int32) for _ in range(4))
    mask = np.zeros(shape, np.float32)
    for row, examples in enumerate(rows):
        at = 0
        for segment, (ids, learned) in enumerate(examples, 1):
            n = len(ids) - 1
            place = slice(at, at + n)
            tokens[row, place] = ids[:-1]
            targets[row, place] = ids[1:]
            mask[row, place] = learned[1:]
            positions[row, place] = np.arange(n)
            segments[row, place] = segment
            at += n
    return {
        "tokens": tokens,
        "targets": targets,
        "mask": mask,
        "positions": positions,
        "segment_ids": segments,
    }


def spans(
    rows: Sequence[tuple[np.ndarray, np.ndarray] | None], length: int, teacher_length: int
) -> dict[str, np.ndarray]:
    """The teacher's tokens of each row and its spans (data/aligned.py), beside the positions that predict them.

    [B, length]: `span_kind` of the span that the target is of, 0 where it is of none; `span`, its number in the row
    from 1 on, and `span_begins`, 1 where the target is its first; there, `teacher_at` is the teacher's position that
    predicts its first. [B, teacher_length]: `teacher_span`, and `teacher_` tokens, targets, positions and segment_ids.
    """
    theirs = arrays([[] if row is None else [(row[0], np.zeros(len(row[0])))] for row in rows], teacher_length)
    del theirs["mask"]
    out = {f"teacher_{name}": array for name, array in theirs.items()}
    names = ("span", "span_kind", "span_begins", "teacher_at")
    out |= {name: np.zeros((len(rows), length), np.int32) for name in names}
    out["teacher_span"] = np.zeros((len(rows), teacher_length), np.int32)
    for i, row in enumerate(rows):
        for number, (own, count, other, their_count, kind) in enumerate(() if row is None else row[1], 1):
            place = slice(own - 1, own - 1 + count)
            out["span"][i, place], out["span_kind"][i, place] = number, kind
            out["span_begins"][i, own - 1], out["teacher_at"][i, own - 1] = 1, other - 1
            out["teacher_span"][i, other - 1 : other - 1 + their_count] = number
    return out


def _logits(examples: Examples, rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """The stored logits of a batch, beside the tokens that are learned; nothing for examples without."""
    if (logits := examples.logits) is None:
        return {}
    ids = np.zeros((*shape, logits.k), np.uint16 if logits.told.vocabulary <= 1 << 16 else np.int32)
    logprobs = np.zeros((*shape, logits.k), np.float16)
    for row, members in enumerate(rows):
        at = 0
        for example in members:
            _, learned = examples[example]
            there = at + np.flatnonzero(learned[1:])
            ids[row, there], logprobs[row, there] = logits.of(example, len(there))
            at += len(learned) - 1
    vocabulary = np.full(shape[0], logits.told.vocabulary, np.int32)
    return {"soft_ids": ids, "soft_logprobs": logprobs, "soft_vocabulary": vocabulary}


def row_length(max_length: int) -> int:
    """Positions of a row that holds an example of `max_length` tokens: its last one is no input."""
    return _rounded(max_length - 1)


def rows_of(examples: Examples, seed: int, capacity: int | None) -> Rows:
    """The rows of all sources of `examples`; `capacity` packs them."""
    sizes, learned = examples.lengths - 1, examples.learned
    sources, weights, first = [], [], 0
    for count, weight in examples.parts:
        part = slice(first, first + count)
        if count:  # not all of it was held out
            sources.append(Source(sizes[part], learned[part], seed, capacity, first))
            weights.append(weight)
        first += count
    return sources[0] if len(sources) == 1 else Mixture(sources, weights, seed)


def _rounded(positions: int) -> int:
    return -(-positions // MULTIPLE) * MULTIPLE
