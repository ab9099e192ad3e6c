"""Stored logits: their bytes, and what comes back of them."""

import numpy as np
import pytest

from distill.data.topk import (
    Told,
    as_text,
    from_text,
    id_bytes,
    pack_ids,
    pack_logprobs,
    packed,
    token_bytes,
    unpack_ids,
)  # fmt: skip


@pytest.mark.parametrize(
    ("vocabulary", "size"), [(40, 132), (65_536, 132), (65_537, 136), (262_144, 140), (262_145, 144)]
)
def test_ids_come_back_and_take_what_is_said(vocabulary: int, size: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocabulary, (7, 32))
    ids[0, :2] = 0, vocabulary - 1
    packed = pack_ids(ids, vocabulary)
    assert packed.shape == (7, id_bytes(32, vocabulary))
    np.testing.assert_array_equal(unpack_ids(packed, 32, vocabulary), ids)
    assert token_bytes(32, vocabulary) == size == sum(Told(32, 0, vocabulary).widths.values())


def test_an_odd_number_of_ids_fills_its_last_byte() -> None:
    ids = np.random.default_rng(1).integers(0, 100_000, (5, 3))
    np.testing.assert_array_equal(unpack_ids(pack_ids(ids, 100_000), 3, 100_000), ids)


def test_logprobs_are_off_by_a_half_of_float16s_last_bit_at_most() -> None:
    logprobs = -np.random.default_rng(2).exponential(4, (1000, 8)).astype(np.float32)
    back = pack_logprobs(logprobs).view("<f2")
    assert (np.abs(back - logprobs) <= 2.0**-11 * np.abs(logprobs) + 1e-7).all()


def test_text_comes_back_and_other_tokens_are_noticed() -> None:
    told = {"logsumexp": [1.5, 2.5], "top_ids": [np.arange(3), np.arange(3)], "top_logprobs": [-np.ones(3)] * 2}
    columns = packed(told, 40)
    back = from_text(as_text(columns), 2)
    assert {name: value.tolist() for name, value in back.items()} == {n: v.tolist() for n, v in columns.items()}
    with pytest.raises(ValueError, match="bytes for 7 tokens"):
        from_text(as_text(columns), 7)
