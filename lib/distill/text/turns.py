"""Conversations of which every assistant turn is learned, as token ids and a mask."""

import re
from collections.abc import Iterator, Sequence

from distill.errors import DistillError
from distill.text.chat import TODAY, Messages, Template, examples_tokens, prompt_id, render
from distill.text.tokenizer import Tokenizer

MARKED = re.compile(r"{%-?\s*generation")


def turns_tokens(
    tokenizer: Tokenizer, batch: Sequence[Messages], template: Template
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids up to the EOS of the last assistant turn, and 1 for what an assistant says, the EOS of each turn included.

    user 5, assistant 7 2, user 6, assistant 8 2 → ids 5 7 2 6 8 2, mask 0 1 1 0 1 1. What an assistant says is
    what the template has between `{% generation %}` and `{% endgeneration %}`; where it has none, what it adds to
    the conversation before the turn when it asks for an answer.
    """
    if template == "none":
        yield from examples_tokens(tokenizer, batch, template)  # a single turn
    elif MARKED.search(tokenizer.chat_template or ""):
        yield from (_marked(tokenizer, messages) for messages in batch)
    elif batch:
        texts, spans = zip(*(_spans(tokenizer, messages) for messages in batch), strict=True)
        yield from (_closed(tokenizer, ids, mask) for ids, mask in tokenizer.encode_marked(texts, spans))


def _marked(tokenizer: Tokenizer, messages: Messages) -> tuple[list[int], list[int]]:
    render(tokenizer, messages, ask=False)  # what is wrong is said there
    found = tokenizer.hf.apply_chat_template(
        messages,
        chat_template=TODAY + tokenizer.chat_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return _closed(tokenizer, list(found["input_ids"]), list(found["assistant_masks"]))


def _closed(tokenizer: Tokenizer, ids: list[int], mask: list[int]) -> tuple[list[int], list[int]]:
    """With the EOS behind every turn learned, and nothing behind the last one; one is added where none is there."""
    for i in range(1, len(ids)):
        if ids[i] in tokenizer.eos_ids and mask[i - 1] and ids[i - 1] not in tokenizer.eos_ids:
            mask[i] = 1
    end = max((i + 1 for i, learned in enumerate(mask) if learned), default=0)
    ids, mask = ids[:end], mask[:end]
    return (ids, mask) if not ids or ids[-1] in tokenizer.eos_ids else ([*ids, tokenizer.eos_id], [*mask, 1])


def _spans(tokenizer: Tokenizer, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and from where to where (in characters) each assistant turn goes, with its EOS."""
    whole, spans = render(tokenizer, messages, ask=False), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        before = render(tokenizer, messages[:i], ask=True)
        content = message["content"]
        start = next((at for text in (content, content.strip()) if (at := whole.find(text, len(before))) >= 0), -1)
        if not whole.startswith(before) or start < 0:
            raise DistillError(
                f"conversation {prompt_id(messages)}: the chat template writes turn {i + 1} otherwise when more "
                "follows, so where it starts is unknown: set loss_on to completion, or take a template with "
                "{% generation %}"
            )
        end = start + len(content.strip())
        following = next((m["content"].strip() for m in messages[i + 1 :] if m["content"].strip()), None)
        limit = len(whole) if following is None else whole.find(following, end)
        closings = [at + len(text) for text in tokenizer.eos_texts if (at := whole.find(text, end, limit)) >= 0]
        spans.append((len(before), min(closings, default=end)))
    return whole, spans
