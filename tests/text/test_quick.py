"""Ids of `fastokens` are taken where they are those of `tokenizers`, and nowhere else."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import CHATML, CONTROL, byte_tokenizer, llama2_tokenizer

from distill.text import quick
from distill.text.chat import prompts_tokens
from distill.text.tokenizer import MANY, Tokenizer, load_tokenizer

TEXTS = [f"what is {i} of {'x' * (i % 7)}? \n<|im_end|> " for i in range(MANY + 70)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML))


def exact(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, special=False) for text in texts]


PARTS = st.one_of(st.text(max_size=8), st.sampled_from([*CONTROL, *quick.WORDS, " the", "\n\n", "12"]))


@settings(deadline=None)
@given(st.lists(st.lists(PARTS, max_size=6).map("".join), max_size=8))
def test_ids_are_the_same_for_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.quick is not None
    assert tokenizer.quick.other is not None, "no check has failed so far"
    found = quick._ids(tokenizer.quick.other, texts)
    assert found == exact(tokenizer, texts)


def test_many_texts_go_the_quick_way_and_few_do_not(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = tokenizer.quick.encode_batch
    monkeypatch.setattr(tokenizer.quick, "encode_batch", lambda texts: asked.append(len(texts)) or real(texts))
    assert tokenizer.encode_batch(TEXTS, special=False) == exact(tokenizer, TEXTS)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    assert len(prompts_tokens(tokenizer, chats, "tokenizer")) == len(TEXTS)
    tokenizer.encode_batch(TEXTS[: MANY - 1], special=False)
    tokenizer.encode_batch(TEXTS, special=True)
    assert asked == [len(TEXTS)] * 2


class Wrong:
    """The other tokenizer, which gives other ids from some text on, or breaks."""

    def __init__(self, other, at: str, error: type[BaseException] | None = None):
        self.other, self.at, self.error = other, at, error

    def encode_batch(self, texts: list[str], add_special_tokens: bool):
        found = self.other.encode_batch(texts, add_special_tokens=add_special_tokens)
        for text, encoding in zip(texts, found, strict=True):
            if self.at in text:
                if self.error is not None:
                    raise self.error("panicked")
                encoding.ids = [0]
        return found


class Panic(BaseException):
    """As Rust's panics come to Python."""


@pytest.mark.parametrize("error", [None, ValueError, Panic])
def test_a_difference_has_the_batch_done_again_and_all_that_follows(tokenizer: Tokenizer, error) -> None:
    real = tokenizer.quick
    both = quick.Quick(real.exact, Wrong(real.other, "", error))
    assert both.encode_batch(TEXTS) == exact(tokenizer, TEXTS)
    assert both.other is None


def test_a_tokenizer_that_it_gets_wrong_or_does_not_know_is_left_to_the_exact_one(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastokens

    real = fastokens.Tokenizer.from_json_str
    for other in (lambda text: Wrong(real(text), "ёж"), lambda text: Wrong(real(text), "ёж", Panic)):
        monkeypatch.setattr(fastokens, "Tokenizer", type("Tokenizer", (), {"from_json_str": staticmethod(other)}))
        assert quick.quick(tokenizer.hf.backend_tokenizer) is None
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert quick.quick(tokenizer.hf.backend_tokenizer) is None
    monkeypatch.undo()
    old = load_tokenizer(llama2_tokenizer(tmp_path / "llama2"))
    texts = ["[INST] what is it [/INST]", "  paris", "", "é?"] * MANY
    assert old.encode_batch(texts, special=False) == exact(old, texts)
