"""The order is a pure function of (number of examples, seed, epoch): the position is the step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.data.rows import permutation


def examples(*pairs: tuple[list[int], list[int]]) -> Examples:
    """Of prompts and answers."""
    ids = [token for prompt, answer in pairs for token in prompt + answer]
    mask = [m for prompt, answer in pairs for m in [0] * len(prompt) + [1] * len(answer)]
    offsets = np.cumsum([0, *(len(prompt) + len(answer) for prompt, answer in pairs)])
    return Examples(np.asarray(ids, np.int32), np.asarray(mask, np.uint8), offsets, {})


def numbered(count: int) -> Examples:
    return examples(*(([i], [100 + i]) for i in range(count)))


def test_targets_are_the_next_tokens_and_padding_counts_nothing() -> None:
    batch = Loader(examples(([5, 6], [7, 2])), batch_size=1, seed=0).batch(0)
    pad = [0] * 5
    assert {name: array[0].tolist() for name, array in batch.items()} == {
        "tokens": [5, 6, 7, *pad],
        "targets": [6, 7, 2, *pad],
        "mask": [0, 1, 1, *pad],
        "positions": [0, 1, 2, *pad],
        "segment_ids": [1, 1, 1, *pad],
    }
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32", "targets": "int32", "positions": "int32", "segment_ids": "int32", "mask": "float32"
    }  # fmt: skip


@pytest.mark.parametrize(("tokens", "length"), [(2, 8), (9, 8), (10, 16), (17, 16)])
def test_one_length_holds_the_longest_example(tokens: int, length: int) -> None:
    loader = Loader(examples(([1], [2]), ([1] * (tokens - 1), [2])), batch_size=3, seed=0)
    assert loader.length == length
    assert all(loader.batch(step)["tokens"].shape == (3, length) for step in range(4))


def test_a_length_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="length 2 is smaller than the longest input, 3"):
        Loader(examples(([5, 6], [7, 2])), batch_size=1, seed=0, length=2)


@given(st.integers(1, 12), st.integers(1, 7), st.integers(-5, 5), st.integers(0, 40))
def test_a_batch_depends_on_its_step_alone(count: int, batch_size: int, seed: int, step: int) -> None:
    one, two = (Loader(numbered(count), batch_size, seed) for _ in range(2))
    for earlier in range(step % 5):
        one.batch(earlier)
    for name, array in one.batch(step).items():
        np.testing.assert_array_equal(array, two.batch(step)[name])


@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 5))
def test_every_epoch_holds_every_example_once(count: int, batch_size: int, seed: int) -> None:
    loader = Loader(numbered(count), batch_size, seed)
    steps = -(-3 * count // batch_size)
    order = [example for step in range(steps) for example in loader.order(step)]
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
    tokens = [int(row[0]) for step in range(steps) for row in loader.batch(step)["tokens"]]
    assert tokens == order


@given(st.integers(2, 5))
def test_the_order_does_not_depend_on_how_it_is_cut_into_batches(batch_size: int) -> None:
    single = [Loader(numbered(7), 1, 3).order(step)[0] for step in range(4 * batch_size)]
    assert single == [i for step in range(4) for i in Loader(numbered(7), batch_size, 3).order(step)]


def test_seeds_and_epochs_differ_and_never_change() -> None:
    assert len({tuple(permutation(20, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert permutation(8, 1, 0).tolist() == [5, 0, 1, 4, 2, 6, 3, 7], "interrupted runs go on by it"
