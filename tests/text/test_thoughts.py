"""A thought is read and not learned, wherever its tokens end."""

from pathlib import Path

import pytest
from tokenizers_for_tests import CHATML, THINKING, ZEPHYR, byte_tokenizer

from distill.data.masking import training_examples
from distill.text.thoughts import thought_tokens
from distill.text.tokenizer import Tokenizer, load_tokenizer


def tokenizer(folder: Path, template: str = ZEPHYR, **options: object) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(folder, template, pad="<unk>", **options))


@pytest.mark.parametrize("extra", [(), ("<think>", "</think>")], ids=["spelled", "tokens"])
@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        ("<think>hm</think>\n\nyes", "yes"),
        ("hm</think>yes", "yes"),
        ("<think>one</think> or <think>two</think> three", "three"),
        ("<think>café</think>é", "é"),
        ("yes", "yes"),
        ("<think>hm", ""),
        ("a < think", "a < think"),
    ],
)
def test_what_is_left_of_an_answer(tmp_path: Path, extra: tuple[str, ...], answer: str, learned: str) -> None:
    words = tokenizer(tmp_path, extra=extra)
    ids = words.encode(answer, special=False)
    assert words.hf.decode(ids[thought_tokens(words, ids) :], clean_up_tokenization_spaces=False).strip() == learned


def learned(words: Tokenizer, messages: list[dict], **how: object) -> str:
    examples = training_examples([messages], words, "tokenizer", 400, **how)
    ids, mask = examples[0]
    return words.hf.decode([int(i) for i, m in zip(ids, mask, strict=True) if m])


@pytest.mark.parametrize(("template", "eos"), [(ZEPHYR, "</s>"), (CHATML, "<|im_end|>"), (THINKING, "<|im_end|>")])
def test_thoughts_are_context_by_choice(tmp_path: Path, template: str, eos: str) -> None:
    words = tokenizer(tmp_path, template, eos=eos)
    chat = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "<think>hm</think>\nOne."},
            {"role": "user", "content": "two?"}, {"role": "assistant", "content": "so</think>Two!"}]  # fmt: skip
    assert learned(words, chat, thoughts="context") == f"Two!{eos}"
    assert "so</think>Two!" in learned(words, chat)
    if template != THINKING:
        every = {"loss_on": "assistant", "thoughts": "context"}
        assert learned(words, chat, **every) == f"One.{eos}Two!{eos}"


def test_an_answer_that_is_thought_alone_teaches_nothing(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    chats = [
        [{"role": "user", "content": "one?"}, {"role": "assistant", "content": text}] for text in ("<think>hm", "One.")
    ]
    examples = training_examples(chats, words, "tokenizer", 400, thoughts="context")
    assert (len(examples), examples.dropped) == (1, {"nothing_to_learn": 1})
