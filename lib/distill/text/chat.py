"""Conversations to token ids, with the tokenizer's own chat template or with none.

Rendered text is tokenized once and gets no special tokens beyond those the template wrote: a rendered string
that is encoded the usual way starts with two BOS.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from distill.errors import DistillError
from distill.files import digest
from distill.text.tokenizer import Tokenizer

Message = dict[str, str]
Messages = list[Message]
Template = Literal["tokenizer", "none"]

TODAY = (
    "{%- macro strftime_now(format) -%}{{ format | replace('%Y', '2024') | replace('%m', '07') "
    "| replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') | replace('%A', 'Friday') "
    "| replace('%H', '00') | replace('%M', '00') | replace('%S', '00') }}{%- endmacro -%}"
)
"""The day for a template that asks what day it is (Llama 3's own default): ids do not change overnight."""


def prompt_id(messages: Messages) -> str:
    """The name of a prompt: 16 hex digits that depend on its messages alone."""
    return digest(messages)[:16]


def prompt_tokens(tokenizer: Tokenizer, messages: Messages, template: Template) -> list[int]:
    """Ids that ask for the answer to `messages`, which end with a user turn."""
    return prompts_tokens(tokenizer, [messages], template)[0]


def prompts_tokens(tokenizer: Tokenizer, batch: Sequence[Messages], template: Template) -> list[list[int]]:
    """`prompt_tokens` of each, tokenized in parallel."""
    if template == "none":
        texts = [_plain(tokenizer, messages) for messages in batch]
        return [_without_eos(tokenizer, ids) for ids in tokenizer.encode_batch(texts, special=True)]
    return tokenizer.encode_batch([render(tokenizer, m, ask=True) for m in batch], special=False)


def example_tokens(tokenizer: Tokenizer, messages: Messages, template: Template) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation up to the EOS of its last assistant turn, and what of it is learned.

    prompt `5 6`, answer `7`, EOS `2` → ids 5 6 7 2, mask 0 0 1 1. The EOS is the template's where it writes
    one of `eos_ids`, else the tokenizer's is added; what a template writes after it (a newline) is left out.
    A token that holds the end of the prompt and the start of the answer is learned.
    """
    return next(examples_tokens(tokenizer, [messages], template))


def examples_tokens(
    tokenizer: Tokenizer, batch: Sequence[Messages], template: Template
) -> Iterator[tuple[list[int], list[int]]]:
    """`example_tokens` of each, tokenized in parallel."""
    for messages in batch:
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise DistillError(
                f"conversation {prompt_id(messages)} is not a prompt and an assistant turn: nothing to learn"
            )
    if not batch:
        return
    plain = template == "none"
    parts = [(_plain_parts if plain else _rendered_parts)(tokenizer, messages) for messages in batch]
    texts, boundaries, closings = zip(*parts, strict=True)
    encoded = tokenizer.encode_split(texts, boundaries, special=plain)
    for (ids, start), closed in zip(encoded, closings, strict=True):
        if plain:
            ids = _without_eos(tokenizer, ids)
        mask = [0] * start + [1] * (len(ids) - start)
        yield (ids, mask) if closed else ([*ids, tokenizer.eos_id], [*mask, 1])


def render(tokenizer: Tokenizer, messages: Messages, ask: bool) -> str:
    """`messages` as the tokenizer's chat template writes them; `ask` opens an assistant turn at the end."""
    template = tokenizer.chat_template
    if template is None:
        raise DistillError(
            f"the tokenizer in {tokenizer.folder} has no chat template: set prompts.chat_template to none"
        )
    try:
        return tokenizer.hf.apply_chat_template(
            messages,
            chat_template=TODAY + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=ask,
        )
    except Exception as error:  # jinja2's own, or whatever the template's expressions raise
        remedy = "check the order of its roles, or take another template"
        if any(message["role"] == "system" for message in messages):
            remedy = "move its system message into the first user turn, or take another template"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DistillError(
            f"prompt {prompt_id(messages)} is refused by the chat template ({reason}): {remedy}"
        ) from None


def _rendered_parts(tokenizer: Tokenizer, messages: Messages) -> tuple[str, int, bool]:
    """Text up to the end of the answer, where the answer starts in it, and whether an EOS closes it."""
    whole = render(tokenizer, messages, ask=False)
    prompt = render(tokenizer, messages[:-1], ask=True)
    boundary = len(prompt)
    if not whole.startswith(prompt):
        boundary = _shared_boundary(whole, prompt, messages)
    answer = messages[-1]["content"]
    end = boundary
    for content in (answer, answer.strip()):  # many templates strip it
        if answer.strip() and (at := whole.find(content, boundary)) >= 0:
            end = at + len(content)  # an EOS that the answer itself spells out does not end it
            break
    for closers, closed in ((tokenizer.eos_texts, True), (tokenizer.special_texts, False)):
        if found := [at + len(text) for text in closers if (at := whole.find(text, end)) >= 0]:
            return whole[: min(found)], boundary, closed
    return whole[: max(end, len(whole.rstrip()))], boundary, False


def _shared_boundary(whole: str, prompt: str, messages: Messages) -> int:
    """Where the answer starts when the prompt is not the start of the whole.

    Templates do this in the opening they write for the answer (`<|assistant|>\\n<think>\\n`): then the answer
    starts where the two part, and not after its own first letters if the opening has the same ones.
    """
    parting = next(i for i, (a, b) in enumerate(zip(whole + "\0", prompt, strict=False)) if a != b)
    question, answer = messages[-2]["content"].strip(), messages[-1]["content"].strip()
    asked = prompt.rfind(question) + len(question) if question in prompt else parting + 1
    if parting < asked:
        raise DistillError(
            f"conversation {prompt_id(messages)}: the chat template writes the prompt differently when an "
            f"answer follows (from character {parting}), so where it starts is unknown: take another template"
        )
    start = whole.find(answer, max(asked, parting + 1 - len(answer)), parting + len(answer))
    return parting if start < 0 else min(start, parting)


def _plain_parts(tokenizer: Tokenizer, messages: Messages) -> tuple[str, int, bool]:
    prompt = _plain(tokenizer, messages[:-1])
    return prompt + messages[-1]["content"], len(prompt), False


def _plain(tokenizer: Tokenizer, messages: Messages) -> str:
    if len(messages) != 1 or messages[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in messages) or "nothing"
        raise DistillError(
            f"prompt {prompt_id(messages)} has {roles}, chat_template none takes a single user message: "
            "set prompts.chat_template to tokenizer, or give the prompt as one text"
        )
    return messages[0]["content"]


def _without_eos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Without the EOS that some tokenizers add: a prompt goes on, and an example gets one of ours."""
    return ids[:-1] if tokenizer.adds_eos else ids
