"""What an engine is asked, and what it answers."""

from dataclasses import dataclass, field

from distill.generation.sampling import Draw

SAMPLED = Draw()


@dataclass(frozen=True)
class Request:
    """One sample. `sample` tells samples of one prompt and seed (64 bits) apart; `stop_ids` end it."""

    prompt: tuple[int, ...]
    seed: int
    sample: int
    max_tokens: int
    draw: Draw = SAMPLED
    stop_ids: frozenset[int] = frozenset()


@dataclass
class Result:
    """What has come of a request: tokens with the stop id that ended them, their log-probabilities, and why.

    `finish_reason` is None while it runs, then `stop`, or `length` when max_tokens came first. `told` has of each
    token what the engine was asked to tell: logsumexp, `top_ids` and `top_logprobs` [k] best first, `sampled_ids`
    and `sampled_logprobs` [n] in the order of their draws.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    told: dict[str, list] = field(default_factory=dict)
