"""Answers in OpenAI's form: whole, or as the chunks of a stream."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distill.data.topk import as_text, packed, told_columns
from distill.serving.protocol import Asked, ChatRequest
from distill.serving.text import Text
from distill.serving.worker import News
from distill.text.tokenizer import Tokenizer


@dataclass
class Choice:
    """One choice while it grows."""

    text: Text
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[str, float]] = field(default_factory=list)
    told: dict[str, list] = field(default_factory=dict)
    said: str = ""
    finish_reason: str | None = None


class Reply:
    """Gathers the news of one request's samples, and writes them down."""

    def __init__(
        self, asked: Asked, prompts: list[list[int]], model: str, tokenizer: Tokenizer, name: Callable[[int], str]
    ):
        self.asked, self.prompts, self.name, self.vocabulary = asked, prompts, name, tokenizer.real_vocab
        self.chat = isinstance(asked, ChatRequest)
        self.choices = [Choice(Text(tokenizer, asked.stop)) for _ in range(asked.n * len(prompts))]
        kind = "chat.completion" if self.chat else "text_completion"
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if self.chat and asked.stream else kind,
            "created": int(time.time()),
            "model": model,
        }

    def add(self, news: News) -> str:
        """Take news in; gives the new text. A stop string in it sets the choice's finish_reason."""
        choice = self.choices[news.index]
        choice.tokens += news.tokens
        choice.logprobs += news.logprobs
        choice.top += self._top(news)
        for column, width in told_columns(self.asked.told).items():
            values = news.told[column]
            choice.told.setdefault(column, []).extend([value[:width] for value in values] if width else values)
        choice.finish_reason = news.finish_reason
        ended_by_id = news.finish_reason == "stop"
        piece = choice.text.add(news.tokens[:-1] if ended_by_id else news.tokens, news.finish_reason is not None)
        choice.said += piece
        if choice.text.stopped:
            choice.finish_reason = "stop"
        return piece

    def whole(self) -> bytes:
        """The body of an answer that is complete."""
        choices = []
        for index, choice in enumerate(self.choices):
            content = {"message": {"role": "assistant", "content": choice.said}} if self.chat else {"text": choice.said}
            told = choice.tokens, choice.logprobs, choice.top
            choices.append(self._choice(index, content, told, choice.finish_reason))
            if choice.told:
                choices[-1]["logits"] = as_text(packed(choice.told, self.vocabulary))
        return _json(self.head | {"choices": choices, "usage": self.usage()})

    def chunk(self, news: News, piece: str, first: bool) -> bytes:
        """A stream's event with what `add` gave for `news`."""
        role = {"role": "assistant"} if first else {}
        content = {"delta": role | {"content": piece}} if self.chat else {"text": piece}
        reason = self.choices[news.index].finish_reason
        told = news.tokens, news.logprobs, self._top(news)
        return _event(self.head | {"choices": [self._choice(news.index, content, told, reason)]})

    def end(self) -> bytes:
        """A stream's last events."""
        usage = b""
        if self.asked.stream_options.get("include_usage"):
            usage = _event(self.head | {"choices": [], "usage": self.usage()})
        return usage + b"data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        read = sum(map(len, self.prompts))
        written = sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _top(self, news: News) -> list[dict[str, float]]:
        """The likeliest tokens by their text, as many as were asked for, at each position."""
        if not (count := self.asked.alternatives):
            return [{} for _ in news.tokens]
        rows = zip(news.told["top_ids"], news.told["top_logprobs"], strict=True)
        cut = ((ids[:count].tolist(), values[:count].tolist()) for ids, values in rows)
        return [{self.name(i): value for i, value in zip(*row, strict=True)} for row in cut]

    def _choice(
        self, index: int, content: dict, told: tuple[list[int], list[float], list[dict]], reason: str | None
    ) -> dict[str, Any]:
        out = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        tokens, logprobs, top = told
        if self.asked.alternatives is not None:
            names = [self.name(token) for token in tokens]
            out["logprobs"] = _chat_logprobs(names, logprobs, top) if self.chat else _logprobs(names, logprobs, top)
        if self.asked.return_token_ids:
            out |= {"token_ids": tokens, "prompt_token_ids": self.prompts[index // self.asked.n]}
        return out


def failure(message: str) -> bytes:
    """A stream's event that says why it breaks off."""
    return _event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


def _logprobs(names: list[str], logprobs: list[float], top: list[dict[str, float]]) -> dict[str, Any]:
    offsets, at = [], 0
    for name in names:
        offsets.append(at)
        at += len(name)
    return {
        "tokens": names,
        "token_logprobs": logprobs,
        "top_logprobs": top if any(top) else None,
        "text_offset": offsets,
    }


def _chat_logprobs(names: list[str], logprobs: list[float], top: list[dict[str, float]]) -> dict[str, Any]:
    def entry(name: str, value: float) -> dict[str, Any]:
        return {"token": name, "logprob": value, "bytes": list(name.encode())}

    rows = zip(names, logprobs, top, strict=True)
    content = [entry(*one) | {"top_logprobs": [entry(*other) for other in best.items()]} for *one, best in rows]
    return {"content": content, "refusal": None}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _event(value: Any) -> bytes:
    return b"data: " + _json(value) + b"\n\n"
