"""Every assistant turn is learned with its EOS, and nothing else is."""

from pathlib import Path

import pytest
from tokenizers_for_tests import LLAMA2, ZEPHYR, byte_tokenizer

from distill.errors import DistillError
from distill.text.chat import example_tokens
from distill.text.tokenizer import Tokenizer, load_tokenizer
from distill.text.turns import turns_tokens

CHAT = [
    {"role": "user", "content": "one?"}, {"role": "assistant", "content": "One."},
    {"role": "user", "content": "two?"}, {"role": "assistant", "content": "Two!"},
]  # fmt: skip
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{{ eos_token }}\n{% else %}U:{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def tokenizer(folder: Path, template: str) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(folder, template, pad="</s>"))


def learned(tokenizer: Tokenizer, messages: list[dict]) -> tuple[list[str], list[int]]:
    """The texts of the learned stretches, and the last id."""
    ((ids, mask),) = turns_tokens(tokenizer, [messages], "tokenizer")
    stretches: list[list[int]] = []
    for i, (token, marked) in enumerate(zip(ids, mask, strict=True)):
        if marked:
            stretches = stretches if i and mask[i - 1] else [*stretches, []]
            stretches[-1].append(token)
    return [tokenizer.hf.decode(part) for part in stretches], ids


@pytest.mark.parametrize("template", [ZEPHYR, LLAMA2, GENERATION], ids=["zephyr", "llama-2", "generation"])
def test_every_answer_and_its_eos_is_learned(tmp_path: Path, template: str) -> None:
    made = tokenizer(tmp_path, template)
    stretches, ids = learned(made, CHAT)
    assert [text.replace(" ", "") for text in stretches] == ["One.</s>", "Two!</s>"]
    assert ids[-1] == made.eos_id


@pytest.mark.parametrize("template", [ZEPHYR, LLAMA2], ids=["zephyr", "llama-2"])
def test_one_turn_is_as_when_the_completion_is_learned(tmp_path: Path, template: str) -> None:
    made = tokenizer(tmp_path, template)
    (found,) = turns_tokens(made, [CHAT[:2]], "tokenizer")
    assert found == example_tokens(made, CHAT[:2], "tokenizer")


def test_an_empty_answer_in_between_is_not_learned(tmp_path: Path) -> None:
    silent = [CHAT[0], {"role": "assistant", "content": ""}, *CHAT[2:]]
    assert [text.strip() for text in learned(tokenizer(tmp_path, ZEPHYR), silent)[0]] == ["Two!</s>"]


def test_a_template_that_rewrites_the_past_is_refused(tmp_path: Path) -> None:
    forgetful = "{% for m in messages[-2:] %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    with pytest.raises(DistillError, match=r"writes turn 2 otherwise when more follows.*set loss_on to completion"):
        learned(tokenizer(tmp_path, forgetful), CHAT)
