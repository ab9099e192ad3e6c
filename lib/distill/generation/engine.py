"""The engine: slots that decode together, refilled as samples end. Tokens in, tokens out.

A sample depends on (seed, prompt, sample index) alone, not on its slot or neighbours: every compiled shape
is fixed by the engine and the sample's own length, and rows of a product do not see each other. Decoding
attends the whole cache for that reason: a span that followed the longest neighbour would reach the last bits,
since XLA sums a softmax over 64 and over 128 positions in another order.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import DistillError
from distill.generation.sampling import Draw, choose, uniforms
from distill.models import decoder
from distill.models.cache import empty_cache, insert
from distill.models.config import ModelConfig

STEPS = 8
"""Decode steps a round trip to the host; a sample that ends inside wastes the rest of its slot's steps."""
PREFILL_ROWS = 8
"""Prompts that are read together."""
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

    `finish_reason` is None while it runs, then `stop`, or `length` when max_tokens came first.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


class Engine:
    """Decodes requests in `slots` rows; `max_length` is the longest prompt and completion together."""

    def __init__(self, config: ModelConfig, params: decoder.Params, *, slots: int, max_length: int, real_vocab: int):
        if max_length > config.max_positions:
            raise DistillError(
                f"max_target_length is {max_length}, the model's context is {config.max_positions}: lower it"
            )
        self.config, self.params, self.slots, self.real_vocab = config.reaching(max_length), params, slots, real_vocab
        self.max_length = max_length
        self.caches = empty_cache(config, slots, -(-(max_length + STEPS) // 32) * 32, params["embed"].dtype)
        self.state = {
            "token": jnp.zeros(slots, jnp.int32),
            "position": jnp.zeros(slots, jnp.int32),
            "seed": jnp.zeros((slots, 2), jnp.uint32),
            "sample": jnp.zeros(slots, jnp.int32),
            "draw": _draws([], slots),
        }
        self.waiting: deque[tuple[int, Request]] = deque()
        self.running: dict[int, tuple[int, Request, Result]] = {}
        self.free = list(range(slots))
        self.submitted = 0

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Result]]:
        """Yield (index of the request, its result), each as soon as it has ended."""
        index = {self.submit(request): i for i, request in enumerate(requests)}
        while index:
            for name, result in self.step():
                if result.finish_reason is not None:
                    yield index.pop(name), result

    def submit(self, request: Request) -> int:
        """Queue a request; gives the name that `step` calls it by."""
        if not request.prompt or len(request.prompt) + request.max_tokens > self.max_length or request.max_tokens < 1:
            raise DistillError(
                f"a prompt of {len(request.prompt)} tokens and a completion of {request.max_tokens} do not fit "
                f"{self.max_length} positions: shorten the prompt, or raise max_target_length"
            )
        self.submitted += 1
        self.waiting.append((self.submitted, request))
        return self.submitted

    def cancel(self, name: int) -> None:
        """Forget a request and free its slot; a name that is done already is none."""
        self.waiting = deque(item for item in self.waiting if item[0] != name)
        for slot, (running, _, _) in list(self.running.items()):
            if running == name:
                self._release(slot)

    def step(self) -> list[tuple[int, Result]]:
        """Fill free slots, decode STEPS tokens in all; gives every request that has new tokens, with its result."""
        moved: dict[int, Result] = {}
        while self.waiting and self.free:
            self._fill(moved)
        if self.running:
            state = self.params, self.caches, self.state
            self.caches, self.state, tokens, logprobs = _decode(self.config, self.real_vocab, *state)
            tokens, logprobs = np.asarray(tokens).T.tolist(), np.asarray(logprobs).T.tolist()
            for slot in list(self.running):
                self._append(slot, tokens[slot], logprobs[slot], moved)
        return list(moved.items())

    def _fill(self, moved: dict[int, Result]) -> None:
        """Read the first waiting prompt and others of its length bucket, and put their samples in free slots.

        A prompt is read once for all its samples that find a slot; what is passed over keeps its place.
        """
        bucket = _bucket(len(self.waiting[0][1].prompt))
        prompts: dict[tuple[int, ...], int] = {}
        placed: list[tuple[int, int, Request]] = []
        passed: deque[tuple[int, Request]] = deque()
        while self.waiting and self.free:
            name, request = self.waiting.popleft()
            known = request.prompt in prompts
            if not known and (len(prompts) == PREFILL_ROWS or _bucket(len(request.prompt)) != bucket):
                passed.append((name, request))
                continue
            slot = self.free.pop(0)
            self.running[slot] = name, request, Result()
            placed.append((slot, prompts.setdefault(request.prompt, len(prompts)), request))
        self.waiting.extendleft(reversed(passed))
        tokens = np.zeros((PREFILL_ROWS, bucket), np.int32)
        lengths = np.ones(PREFILL_ROWS, np.int32)
        for prompt, row in prompts.items():
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        new = {
            "slot": _column([slot for slot, _, _ in placed], self.slots, fill=self.slots),
            "row": _column([row for _, row, _ in placed], self.slots),
            "sample": _column([request.sample for _, _, request in placed], self.slots),
            "seed": np.zeros((self.slots, 2), np.uint32),
            "draw": _draws([request.draw for _, _, request in placed], self.slots),
        }
        for i, (_, _, request) in enumerate(placed):
            new["seed"][i] = request.seed >> 32, request.seed & 0xFFFFFFFF
        fresh = _prefill(self.config, self.params, tokens, lengths)
        self.caches, self.state, token, logprob = _insert(
            self.config, self.real_vocab, fresh, self.caches, self.state, lengths, new
        )
        token, logprob = np.asarray(token).tolist(), np.asarray(logprob).tolist()
        for i, (slot, _, _) in enumerate(placed):
            self._append(slot, token[i : i + 1], logprob[i : i + 1], moved)

    def _append(self, slot: int, tokens: list[int], logprobs: list[float], moved: dict[int, Result]) -> None:
        """Give a slot's tokens to its request, up to its end; at the end the slot is free."""
        name, request, result = self.running[slot]
        moved[name] = result
        for token, logprob in zip(tokens, logprobs, strict=True):
            if logprob != logprob:
                raise DistillError("the model gave NaN: its weights are damaged, or their dtype is too narrow")
            result.tokens.append(token)
            result.logprobs.append(logprob)
            if token in request.stop_ids:
                result.finish_reason = "stop"
            elif len(result.tokens) >= request.max_tokens:
                result.finish_reason = "length"
            if result.finish_reason is not None:
                self._release(slot)
                return

    def _release(self, slot: int) -> None:
        del self.running[slot]
        self.free.append(slot)


@partial(jax.jit, static_argnums=0)
def _prefill(config: ModelConfig, params: decoder.Params, tokens: jax.Array, lengths: jax.Array):
    """Caches of right-padded prompts [P, T], and the logits behind each one's last token."""
    rows, bucket = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(bucket, dtype=jnp.int32)[None], tokens.shape)
    empty = empty_cache(config, rows, bucket, params["embed"].dtype, chunk=bucket)
    valid = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, caches = decoder.extend(config, params, empty, tokens, positions, valid)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return caches, decoder.logits(config, params, last)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _insert(config: ModelConfig, real_vocab: int, fresh, caches, state, lengths, new):
    """Copy prefilled row new["row"][i] to slot new["slot"][i] (out of range: to none), draw its first token."""
    prefilled, logits = fresh
    slots, rows = new.pop("slot"), new.pop("row")
    caches = insert(caches, prefilled, slots, rows, lengths)
    position = lengths[rows]
    draw = uniforms(new["seed"], new["sample"], position)
    token, logprob = choose(new["draw"], logits[rows], draw, real_vocab)
    new |= {"token": token, "position": position}
    state = jax.tree.map(lambda old, value: old.at[slots].set(value, mode="drop"), state, new)
    return caches, state, token, logprob


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _decode(config: ModelConfig, real_vocab: int, params, caches, state):
    """STEPS tokens for every slot, [STEPS, slots]; an idle slot's are not looked at."""

    def step(carry, _):
        caches, token, position = carry
        valid = jnp.ones((token.shape[0], 1), jnp.int32)
        hidden, caches = decoder.extend(config, params, caches, token[:, None], position[:, None], valid)
        draw = uniforms(state["seed"], state["sample"], position + 1)
        token, logprob = choose(state["draw"], decoder.logits(config, params, hidden[:, 0]), draw, real_vocab)
        return (caches, token, position + 1), (token, logprob)

    start = caches, state["token"], state["position"]
    (caches, token, position), (tokens, logprobs) = jax.lax.scan(step, start, None, length=STEPS)
    return caches, {**state, "token": token, "position": position}, tokens, logprobs


def _draws(draws: list[Draw], slots: int) -> Draw:
    """Arrays [slots] of sampling parameters; the rest is filled with what needs least."""
    columns = zip(*draws, strict=True) if draws else ((),) * 4
    rest = Draw(temperature=0.0)
    return Draw(*(_column(c, slots, fill=f) for c, f in zip(columns, rest, strict=True)))


def _column(values: Iterable, slots: int, fill: float = 0) -> np.ndarray:
    """`values` and then `fill`, [slots], float32 or int32 as `fill` is."""
    column = np.full(slots, fill, np.float32 if isinstance(fill, float) else np.int32)
    values = list(values)
    column[: len(values)] = values
    return column


def _bucket(length: int) -> int:
    """The length that a prompt is padded to: 16, 32, 64, ..."""
    return max(16, 1 << (length - 1).bit_length())
