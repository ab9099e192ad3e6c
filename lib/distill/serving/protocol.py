"""OpenAI's completions and chat completions as requests to the engine, and answers as OpenAI writes them.

Extensions have vLLM's names where it has one: top_k, min_p, stop_token_ids, ignore_eos, return_token_ids.
Ours are `first_choice`: choice i is sample first_choice + i, so that a prompt's samples can be asked for in
parts; and `top_logits` and `sampled_logits`: so many a token in each choice's `logits`, packed (data/topk.py). A
field that would change the answer and that we cannot honour is refused, never passed over.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from distill.generation.requests import Request
from distill.generation.sampling import Draw

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "suffix": ("",), "presence_penalty": (0,), "frequency_penalty": (0,),
    "repetition_penalty": (1,), "logit_bias": ({},), "min_tokens": (0,), "tools": ([],), "tool_choice": ("none",),
    "response_format": ({"type": "text"},), "functions": ([],), "modalities": (["text"],),
    "skip_special_tokens": (True,), "parallel_tool_calls": (True, False),
}  # fmt: skip
"""Fields we know and have no use for, with the values that ask for nothing."""
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that do not touch the answer."""


class Problem(Exception):
    """What a client did wrong, or cannot have now; it is answered with `status` and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """What the server's model and engine can take."""

    max_length: int
    vocabulary: int
    eos_ids: tuple[int, ...]
    most_choices: int
    top_logprobs: int = 0  # alternatives that the engine tells at each position
    sampled_logits: int = 0  # and draws from its distribution


class Asked(BaseModel, ABC):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)  # 0 and -1: off
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = None
    first_choice: int = Field(0, ge=0, lt=2**31)
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: dict[str, bool] = {}
    return_token_ids: bool = False
    top_logits: int = Field(0, ge=0)
    sampled_logits: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError("the body must be a JSON object")
        values = {name: value for name, value in values.items() if value is not None and name not in IGNORED}
        for name in NEUTRAL.keys() & values.keys() - cls.model_fields.keys():
            if (value := values.pop(name)) not in NEUTRAL[name]:
                raise ValueError(f"{name} {value!r} is not supported: leave it out")
        if isinstance(values.get("stop"), str):
            values["stop"] = [values["stop"]]
        return values

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: list[str]) -> list[str]:
        if "" in stop:
            raise ValueError("a stop string must have a character")
        return stop

    @property
    def told(self) -> dict[str, int]:
        """How many packed logits of each kind are asked for."""
        return {"top": self.top_logits, "sampled": self.sampled_logits}

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """How many logprobs a position are told beside the token's own; None: not even that."""

    @abstractmethod
    def length(self, prompt: Sequence[int], limits: Limits) -> int:
        """The tokens that an answer to `prompt` may have."""

    def requests(self, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Request]:
        """The samples, `n` a prompt in order: choice i of the answer is request i."""
        if self.n * len(prompts) > limits.most_choices:
            raise Problem(400, f"{self.n * len(prompts)} choices: this server takes {limits.most_choices} a request")
        if (self.alternatives or 0) > limits.top_logprobs:
            raise Problem(
                400,
                f"{self.alternatives} alternatives a token: this server tells {limits.top_logprobs}, "
                "start it with --top-logprobs for more",
            )
        for name, most in (("top_logits", limits.top_logprobs), ("sampled_logits", limits.sampled_logits)):
            if (asked := getattr(self, name)) > most:
                flag = "top-logprobs" if name == "top_logits" else "sampled-logits"
                raise Problem(400, f"{name} {asked}: this server tells {most}, start it with --{flag} {asked}")
        if self.first_choice + self.n > 2**31:
            raise Problem(400, f"first_choice {self.first_choice}: choices are numbered below {2**31}")
        if self.stream and any(self.told.values()):
            raise Problem(400, "packed logits come with whole answers: leave stream out")
        seed = secrets.randbits(64) if self.seed is None else self.seed % 2**64
        draw = Draw(self.temperature, max(self.top_k, 0), self.top_p, self.min_p)
        stop_ids = frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else frozenset(limits.eos_ids))
        made = []
        for prompt in prompts:
            if not prompt or not all(0 <= token < limits.vocabulary for token in prompt):
                raise Problem(400, f"a prompt needs tokens, ids from 0 to {limits.vocabulary - 1}")
            length = self.length(prompt, limits)
            if length < 1 or len(prompt) + length > limits.max_length:
                raise Problem(
                    400,
                    f"this model's context is {limits.max_length} tokens: a prompt of {len(prompt)} and an answer of "
                    f"{max(length, 1)} do not fit, shorten the prompt or lower max_tokens",
                    code="context_length_exceeded",
                )
            samples = range(self.first_choice, self.first_choice + self.n)
            made += [Request(tuple(prompt), seed, sample, length, draw, stop_ids) for sample in samples]
        return made


class CompletionRequest(Asked):
    """Body of /v1/completions; `prompt` is a text, a list of token ids, or a list of either."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: bool | int | None = Field(None, ge=0)

    @property
    def alternatives(self) -> int | None:
        return None if self.logprobs is None or self.logprobs is False else int(self.logprobs)

    def prompts(self) -> list[str] | list[list[int]]:
        """One or many, as many."""
        one = isinstance(self.prompt, str) or not self.prompt or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt

    def length(self, prompt: Sequence[int], limits: Limits) -> int:
        return self.max_tokens or 16  # OpenAI's default


class Message(BaseModel):
    """A turn; `content` is a text, or text parts to be joined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
            return "".join(str(part.get("text", "")) for part in value)
        return value


class ChatRequest(Asked):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0)

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    def length(self, prompt: Sequence[int], limits: Limits) -> int:
        return self.max_completion_tokens or self.max_tokens or limits.max_length - len(prompt)


Kind = TypeVar("Kind", bound=Asked)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """The request in a body, or what is wrong with it in one line."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        said = (f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:3])
        raise Problem(400, "; ".join(said).replace("Value error, ", "")) from None
