from pathlib import Path

import numpy as np
import pytest
from tokenizers_for_tests import ZEPHYR, byte_tokenizer

from distill.data.masking import joined, training_examples
from distill.errors import DistillError
from distill.text.chat import example_tokens
from distill.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), ZEPHYR, pad="</s>"))


def chat(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_examples_are_the_conversations_in_their_order(tokenizer: Tokenizer) -> None:
    conversations = [chat("q" * i, "a" * (i + 1)) for i in range(1, 5)]
    examples = training_examples(iter(conversations), tokenizer, "tokenizer", 1000)
    assert (len(examples), examples.dropped) == (4, {})
    assert examples.ids.dtype == np.int32
    for i, messages in enumerate(conversations):
        ids, mask = example_tokens(tokenizer, messages, "tokenizer")
        assert [part.tolist() for part in examples[i]] == [ids, mask]
        assert examples.lengths[i] == len(ids)
        assert (ids[-1], mask[-1]) == (tokenizer.pad_id, 1), "EOS is learned where it is also the pad"


def test_what_is_no_example_is_counted(tokenizer: Tokenizer) -> None:
    limit = len(example_tokens(tokenizer, chat("q", "aa"), "tokenizer")[0])
    conversations = [
        chat("q", "aa"), chat("q", "aaa " * 9), chat("q", "  "), chat("q", "")[:1], [], chat("q", "a")[1:]
    ]  # fmt: skip
    examples = training_examples(conversations, tokenizer, "tokenizer", limit)
    assert len(examples) == 1
    assert examples.dropped == {"nothing_to_learn": 4, "overlong": 1}


def test_no_example_left_is_an_error_with_the_counts(tokenizer: Tokenizer) -> None:
    complaint = r"no example is left to train on \(overlong 2; the longest has \d+ tokens, max_length is 3\): raise"
    with pytest.raises(DistillError, match=complaint):
        training_examples([chat("q", "a"), chat("q", "b")], tokenizer, "tokenizer", 3)
    with pytest.raises(DistillError, match=r"no example is left to train on \(no rows"):
        training_examples([], tokenizer, "tokenizer", 3)


def test_what_is_cut_is_counted_and_may_have_nothing_left(tokenizer: Tokenizer) -> None:
    whole, _ = example_tokens(tokenizer, chat("q", "abcdef"), "tokenizer")
    limit = len(whole) - 2
    conversations = [chat("q", "ab"), chat("q", "abcdef"), chat("q" * 50, "a")]
    examples = training_examples(conversations, tokenizer, "tokenizer", limit, overlong="cut")
    assert (len(examples), examples.cut, examples.dropped) == (2, 1, {"nothing_to_learn": 1})
    assert examples[1][0].tolist() == whole[:limit]


def test_sources_are_joined_with_their_weights(tokenizer: Tokenizer) -> None:
    one, two = (
        training_examples([chat(letter, letter * i) for i in range(1, 4)], tokenizer, "tokenizer", 1000)
        for letter in "ab"
    )
    whole = joined([one, two.taken(np.asarray([True, False, True]))], [3.0, 1.0])
    assert whole.parts == ((3, 3.0), (2, 1.0))
    wanted = [(one, 0), (one, 1), (one, 2), (two, 0), (two, 2)]
    assert [whole[i][0].tolist() for i in range(5)] == [part[i][0].tolist() for part, i in wanted]
    assert joined([one, two], [None, None]).parts == ((6, 1.0),)
    assert whole.taken(np.asarray([True, False, False, True, True])).parts == ((1, 3.0), (2, 1.0))


def test_chunks_make_no_difference(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conversations = [chat(f"q{i}", "a" * (i % 5)) for i in range(20)]
    whole = training_examples(conversations, tokenizer, "none", 1000)
    monkeypatch.setattr("distill.data.masking.CHUNK", 3)
    parts = training_examples(conversations, tokenizer, "none", 1000)
    for name in ("ids", "mask", "offsets"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert whole.dropped == parts.dropped
