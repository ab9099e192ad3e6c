"""Packed rows: nearly full, the same for the same (lengths, seed, epoch), every example once an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.data.packing import best_fit
from distill.data.rows import Mixture, Source
from distill.errors import DistillError

LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=30)


def examples(lengths: list[int], **more) -> Examples:
    """Of so many tokens each; the first half is the prompt."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    ids = np.concatenate([100 * i + np.arange(n) for i, n in enumerate(lengths)]).astype(np.int32)
    mask = np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.uint8)
    return Examples(ids, mask, offsets, {}, **more)


def test_an_example_goes_where_the_least_room_is() -> None:
    items, starts = best_fit([6, 5, 3, 2], 8)
    assert (items.tolist(), starts.tolist()) == ([0, 3, 1, 2], [0, 2, 4])
    with pytest.raises(ValueError, match="an example of 9 tokens does not fit into a row of 8"):
        best_fit([9], 8)


@given(LENGTHS, st.integers(0, 3))
def test_every_epoch_holds_every_example_once_and_no_row_overflows(lengths: list[int], seed: int) -> None:
    loader = Loader(examples(lengths), 1, seed, 24, packing=True)
    for epoch in range(3):
        rows = [loader.rows.row(epoch * loader.rows.per_epoch + i) for i in range(loader.rows.per_epoch)]
        assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
        assert all(sum(lengths[i] - 1 for i in row) <= 24 for row in rows)


def test_rows_are_full_on_a_realistic_mix_of_lengths() -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(80) - 0.7**2 / 2, 0.7, 4000), 4, 256).astype(int)
    assert 70 < lengths.mean() < 85
    loader = Loader(examples(lengths.tolist()), 8, 0, 256, packing=True)
    assert (lengths - 1).sum() / (loader.rows.per_epoch * 256) >= 0.99


def test_a_row_holds_its_examples_one_behind_the_other() -> None:
    batch = Loader(examples([3, 4]), 1, 0, 8, packing=True).batch(0)
    assert {name: array[0].tolist() for name, array in batch.items()} == {
        "tokens": [100, 101, 102, 0, 1, 0, 0, 0],
        "targets": [101, 102, 103, 1, 2, 0, 0, 0],
        "mask": [0, 1, 1, 1, 1, 0, 0, 0],
        "positions": [0, 1, 2, 0, 1, 0, 0, 0],
        "segment_ids": [1, 1, 1, 2, 2, 0, 0, 0],
    }


@given(LENGTHS, st.booleans(), st.integers(1, 5), st.integers(0, 20))
def test_a_packed_batch_depends_on_its_step_alone(lengths: list[int], two: bool, size: int, step: int) -> None:
    more = {"sources": ((1, 1.0), (len(lengths), 3.0))} if two else {}
    data = examples([5, *lengths] if two else lengths, **more)
    one, other = (Loader(data, size, 7, 24, packing=True) for _ in range(2))
    for earlier in range(step):
        one.batch(earlier)
    for name, array in one.batch(step).items():
        np.testing.assert_array_equal(array, other.batch(step)[name])
        np.testing.assert_array_equal(array[1:3], other.batch(step, slice(1, 3))[name])


@given(LENGTHS, st.integers(1, 4), st.integers(0, 12))
def test_learned_tokens_are_those_of_the_batches(lengths: list[int], size: int, step: int) -> None:
    loader = Loader(examples([3, *lengths], sources=((1, 1.0), (len(lengths), 2.0))), size, 0, 24, packing=True)
    assert loader.learned_before(step) == sum(int(loader.batch(i)["mask"].sum()) for i in range(step))


def test_epochs_differ_in_who_sits_together() -> None:
    loader = Loader(examples([4] * 40), 1, 0, 8, packing=True)
    epochs = [{frozenset(loader.rows.row(epoch * 20 + i)) for i in range(20)} for epoch in range(2)]
    assert epochs[0] != epochs[1]


def test_a_mixture_gives_each_source_its_share_and_all_of_its_examples() -> None:
    sources = [Source(np.full(n, 4), np.full(n, 2), 0, first=first) for n, first in ((10, 0), (200, 10))]
    mixture = Mixture(sources, [3.0, 1.0], 0)
    drawn = np.asarray([int(mixture.row(i)[0]) for i in range(1600)])
    assert (drawn[:1000] < 10).sum() == 750
    assert set(drawn.tolist()) == set(range(210))
    with pytest.raises(DistillError, match="data has weights 1, 1e-06, one under 1/1000 of their sum: leave"):
        Mixture(sources, [1.0, 1e-6], 0)
