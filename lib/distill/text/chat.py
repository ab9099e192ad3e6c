"""Conversations to token ids, with the tokenizer's own chat template or with none.

Rendered text is tokenized once and gets no special tokens beyond those the template wrote: a rendered string
that is encoded the usual way starts with two BOS.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic_core import to_json  # a third of the standard library's time

from distill.errors import DistillError
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
    """The name of a prompt: 16 hex digits that depend on its messages alone: those of their `digest`, sooner."""
    text = to_json([dict(sorted(message.items())) for message in messages])
    return hashlib.sha256(text).hexdigest()[:16]


def prompt_tokens(tokenizer: Tokenizer, messages: Messages, template: Template) -> list[int]:
    """Ids that ask for the answer to `messages`, which end with a user turn."""
    return prompts_tokens(tokenizer, [messages], template)[0]


def prompts_tokens(tokenizer: Tokenizer, batch: Sequence[Messages], template: Template) -> list[list[int]]:
    """`prompt_tokens` of each, tokenized in parallel."""
    if template == "none":
        texts = [_plain(tokenizer, messages) for messages in batch]
        return [_without_eos(tokenizer, ids) for ids in tokenizer.encode_batch(texts, special=True)]
    return tokenizer.encode_batch(_rendered(tokenizer, batch), special=False)


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
    if not batch:
        return
    plain, parts = template == "none", [_parts(tokenizer, messages, template) for messages in batch]
    texts, boundaries = ([getattr(part, name) for part in parts] for name in ("text", "boundary"))
    for part, (ids, start) in zip(parts, tokenizer.encode_split(texts, boundaries, special=plain), strict=True):
        if plain:
            ids = _without_eos(tokenizer, ids)
        mask = [0] * start + [1] * (len(ids) - start)
        yield (ids, mask) if part.closed else ([*ids, tokenizer.eos_id], [*mask, 1])


class Placed(NamedTuple):
    """A conversation's tokens, those from `start` on learned, each with its place in the text (in characters).

    answer: where the text has the answer, without spaces at its ends; None where the template has changed it. An EOS
    that is no part of the text is at its end.
    """

    ids: list[int]
    start: int
    places: list[tuple[int, int]]
    text: str
    answer: tuple[int, int] | None


def placed_tokens(tokenizer: Tokenizer, batch: Sequence[Messages], template: Template) -> Iterator[Placed]:
    """The tokens of `examples_tokens`, and where each is."""
    if not batch:
        return
    plain, parts = template == "none", [_parts(tokenizer, messages, template) for messages in batch]
    encoded = tokenizer.encode_placed([part.text for part in parts], special=plain)
    for part, (ids, places) in zip(parts, encoded, strict=True):
        if plain:
            ids = _without_eos(tokenizer, ids)
        start = bisect_right(range(len(ids)), part.boundary, key=lambda i, places=places: places[i][1])
        places = places[: len(ids)]
        if not part.closed:
            ids, places = [*ids, tokenizer.eos_id], [*places, (len(part.text),) * 2]
        yield Placed(ids, start, places, part.text, part.answer)


def render(tokenizer: Tokenizer, messages: Messages, ask: bool) -> str:
    """`messages` as the tokenizer's chat template writes them; `ask` opens an assistant turn at the end."""
    if tokenizer.chat_template is None:
        raise DistillError(
            f"the tokenizer in {tokenizer.folder} has no chat template: set prompts.chat_template to none"
        )
    try:
        return _apply(tokenizer, messages, ask)
    except Exception as error:  # jinja2's own, or whatever the template's expressions raise
        remedy = "check the order of its roles, or take another template"
        if any(message["role"] == "system" for message in messages):
            remedy = "move its system message into the first user turn, or take another template"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DistillError(
            f"prompt {prompt_id(messages)} is refused by the chat template ({reason}): {remedy}"
        ) from None


def _rendered(tokenizer: Tokenizer, batch: Sequence[Messages]) -> list[str]:
    """`render` of each, asking; together, which takes two thirds of the time."""
    if tokenizer.chat_template is not None and all(batch):
        try:
            return _apply(tokenizer, list(batch), ask=True) if batch else []
        except Exception:
            pass  # which one it was, and what to do, is said below
    return [render(tokenizer, messages, ask=True) for messages in batch]


def _apply(tokenizer: Tokenizer, messages: Messages | list[Messages], ask: bool) -> Any:
    """The text of a conversation, or those of a list of them, by a template that is there."""
    template = tokenizer.chat_template
    return tokenizer.hf.apply_chat_template(
        messages,
        chat_template=TODAY + template if "strftime_now" in template else template,
        tokenize=False,
        add_generation_prompt=ask,
    )


class _Parts(NamedTuple):
    """Text up to the end of the answer, where what is learned starts in it, whether an EOS closes it, and where the
    answer itself is, where it is known."""

    text: str
    boundary: int
    closed: bool
    answer: tuple[int, int] | None


def _parts(tokenizer: Tokenizer, messages: Messages, template: Template) -> _Parts:
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DistillError(
            f"conversation {prompt_id(messages)} is not a prompt and an assistant turn: nothing to learn"
        )
    return (_plain_parts if template == "none" else _rendered_parts)(tokenizer, messages)


def _rendered_parts(tokenizer: Tokenizer, messages: Messages) -> _Parts:
    whole = render(tokenizer, messages, ask=False)
    prompt = render(tokenizer, messages[:-1], ask=True)
    boundary = len(prompt)
    if not whole.startswith(prompt):
        boundary = _shared_boundary(whole, prompt, messages)
    answer = messages[-1]["content"]
    end, place = boundary, None
    for content in (answer, answer.strip()):  # many templates strip it
        if answer.strip() and (at := whole.find(content, boundary)) >= 0:
            end = at + len(content)  # an EOS that the answer itself spells out does not end it
            place = _stripped(content, at)
            break
    for closers, closed in ((tokenizer.eos_texts, True), (tokenizer.special_texts, False)):
        if found := [at + len(text) for text in closers if (at := whole.find(text, end)) >= 0]:
            return _Parts(whole[: min(found)], boundary, closed, place)
    return _Parts(whole[: max(end, len(whole.rstrip()))], boundary, False, place)


def _stripped(content: str, at: int) -> tuple[int, int]:
    """From where to where a content goes that is at `at`, without the spaces at its ends."""
    return at + len(content) - len(content.lstrip()), at + len(content.rstrip())


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


def _plain_parts(tokenizer: Tokenizer, messages: Messages) -> _Parts:
    prompt, answer = _plain(tokenizer, messages[:-1]), messages[-1]["content"]
    return _Parts(prompt + answer, len(prompt), False, _stripped(answer, len(prompt)))


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
