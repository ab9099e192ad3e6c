"""What is asked and what is learned, for the shapes of chat template that models come with."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_for_tests import (
    CHATML,
    LLAMA2,
    LLAMA3,
    LLAMA3_ALWAYS_ASKS,
    NO_END,
    NO_SYSTEM,
    REWRITES,
    THINKING,
    ZEPHYR,
    byte_tokenizer,
    llama2_tokenizer,
)

from distill.errors import DistillError
from distill.text.chat import example_tokens, examples_tokens, prompt_tokens, render
from distill.text.tokenizer import Tokenizer, load_tokenizer

IM_END, EOT, EOS = 4, 5, 2
ASKED = [{"role": "user", "content": "what is the capital of france"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "paris."}]
LONG = [{"role": "system", "content": "be brief"}, *ANSWERED, {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "it is paris"}]  # fmt: skip


def learned(tokenizer: Tokenizer, messages: list[dict], template: str = "tokenizer") -> str:
    """What is learned, as text with its special tokens; the mask is one stretch at the end."""
    ids, mask = example_tokens(tokenizer, messages, template)
    start = mask.index(1)
    assert mask == [0] * start + [1] * (len(ids) - start)
    return tokenizer.hf.decode(ids[start:], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("template", "generation_eos", "answer"),
    [
        (CHATML, IM_END, "{}<|im_end|>"),  # the newline after it is not learned
        (CHATML, None, "{}<|im_end|></s>"),  # the turn's end is no EOS of this model: one is added
        (LLAMA2, None, " {} </s>"),
        (LLAMA3, EOT, "{}<|eot|>"),
        (LLAMA3_ALWAYS_ASKS, EOT, "{}<|eot|>"),  # nor is the opening that follows
        (LLAMA3_ALWAYS_ASKS, None, "{}<|eot|></s>"),
        (ZEPHYR, None, "{}</s>"),
        (THINKING, IM_END, "{}<|im_end|>"),
        (NO_END, None, " {}</s>"),
    ],
)
def test_the_last_answer_and_one_eos_are_learned(
    tmp_path: Path, template: str, generation_eos: int | None, answer: str
) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, template, generation_eos=generation_eos))
    for messages in (ANSWERED, LONG):
        assert learned(tokenizer, messages) == answer.format(messages[-1]["content"])


@pytest.mark.parametrize("template", [CHATML, LLAMA2, LLAMA3, ZEPHYR])
def test_the_whole_is_tokenized_once_and_starts_with_the_prompt(tmp_path: Path, template: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, template, generation_eos=[IM_END, EOT]))
    ids, mask = example_tokens(tokenizer, LONG, "tokenizer")
    prompt = prompt_tokens(tokenizer, LONG[:-1], "tokenizer")
    whole = tokenizer.encode(render(tokenizer, LONG, ask=False), special=False)
    assert ids == whole[: len(ids)]
    assert ids[: len(prompt)] == prompt
    assert mask.index(1) == len(prompt)


def test_a_rendered_prompt_gets_no_second_bos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, LLAMA3))
    assert prompt_tokens(tokenizer, ASKED, "tokenizer").count(tokenizer.bos_id) == 1
    assert example_tokens(tokenizer, ANSWERED, "tokenizer")[0].count(tokenizer.bos_id) == 1


def test_system_and_history_are_asked(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, LLAMA2))
    text = tokenizer.hf.decode(prompt_tokens(tokenizer, LONG[:-1], "tokenizer"))
    assert text == (
        "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nwhat is the capital of france [/INST] paris. </s>"
        "<s>[INST] sure? [/INST]"
    )


def test_eos_is_learned_where_pad_is_the_same(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, ZEPHYR, pad="</s>"))
    assert tokenizer.pad_id == tokenizer.eos_id
    ids, mask = example_tokens(tokenizer, ANSWERED, "tokenizer")
    assert (ids[-1], mask[-1]) == (EOS, 1)


def test_an_eos_that_the_answer_spells_out_does_not_end_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, ZEPHYR))
    messages = [*ASKED, {"role": "assistant", "content": "the token </s> ends a turn"}]
    assert learned(tokenizer, messages) == "the token </s> ends a turn</s>"


def test_a_token_over_the_boundary_is_learned(tmp_path: Path) -> None:
    """`Assistant: ` ends the prompt, `paris` starts the answer: a token `: par` belongs to the answer."""
    folder = byte_tokenizer(tmp_path, NO_END.replace("Assistant:", "Assistant: "), extra=(": par",))
    tokenizer = load_tokenizer(folder)
    assert learned(tokenizer, ANSWERED) == ": paris.</s>"


def test_an_opening_that_starts_like_the_answer_does_not_swallow_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, THINKING, generation_eos=IM_END))
    messages = [*ASKED, {"role": "assistant", "content": "<think> a while"}]
    assert learned(tokenizer, messages) == "<think> a while<|im_end|>"


def test_a_template_that_writes_the_prompt_otherwise_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, REWRITES))
    with pytest.raises(DistillError, match="writes the prompt differently when an answer follows"):
        example_tokens(tokenizer, ANSWERED, "tokenizer")


def test_the_old_llama_shape_keeps_its_underlines(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(llama2_tokenizer(tmp_path))
    ids, mask = example_tokens(tokenizer, ANSWERED, "tokenizer")
    tokens = tokenizer.hf.convert_ids_to_tokens(ids)
    assert tokens[:3] == ["<s>", "▁[", "INST"]
    assert "".join(tokens[mask.index(1) :]) == "▁paris.▁</s>"


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
def test_without_a_template_the_tokenizer_adds_its_bos_and_we_one_eos(tmp_path: Path, around: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, None, around=around))
    text, answer = ASKED[0]["content"], ANSWERED[1]["content"]
    bos = [1] if "<s>" in around else []
    assert prompt_tokens(tokenizer, ASKED, "none") == bos + tokenizer.encode(text, special=False)
    ids, mask = example_tokens(tokenizer, ANSWERED, "none")
    assert ids == [*bos, *tokenizer.encode(text + answer, special=False), EOS]
    assert learned(tokenizer, ANSWERED, "none") == answer + "</s>"
    assert sum(mask) < len(mask)


def test_without_a_template_several_messages_are_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, None))
    with pytest.raises(DistillError, match="has system, user, assistant, user, chat_template none takes a single"):
        prompt_tokens(tokenizer, LONG[:-1], "none")
    with pytest.raises(DistillError, match=r"has no chat template: set prompts\.chat_template to none"):
        prompt_tokens(tokenizer, ASKED, "tokenizer")


def test_a_template_that_takes_no_system_message_says_which_prompt_and_what_to_do(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, NO_SYSTEM))
    refusal = r"^prompt [0-9a-f]{16} is refused .*System role not supported.*: move its system message into the"
    with pytest.raises(DistillError, match=refusal):
        prompt_tokens(tokenizer, LONG[:-1], "tokenizer")


def test_a_template_that_asks_for_the_day_gets_the_same_one_every_day(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, "{{ strftime_now('%d %b %Y') }} " + CHATML))
    assert render(tokenizer, ASKED, ask=True).startswith("26 Jul 2024 <|im_start|>user")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("chatml"), generation_eos=IM_END))


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.sampled_from(["tokenizer", "none"]))
def test_any_text_in_a_batch_or_alone_learns_its_answer(chatml: Tokenizer, pairs: list, template: str) -> None:
    batch = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in pairs
    ]
    for messages, (ids, mask) in zip(batch, examples_tokens(chatml, batch, template), strict=True):
        assert (ids, mask) == example_tokens(chatml, messages, template)
        text = chatml.hf.decode([i for i, m in zip(ids, mask, strict=True) if m][:-1])
        if template == "tokenizer":
            assert text == messages[1]["content"]
        else:
            assert text.endswith(messages[1]["content"])  # a token may hold the end of the question
        assert ids[-1] in chatml.eos_ids
        assert mask[-1] == 1
