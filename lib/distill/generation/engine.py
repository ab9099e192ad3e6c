"""The engine: slots that decode together, refilled as samples end.

A sample depends on (seed, prompt, sample index) alone, not on its slot or neighbours: every compiled shape
is fixed by the settings and the sample's own length, and rows of a product do not see each other. Decoding
attends the whole cache for that reason: a span that followed the longest neighbour would reach the last bits,
since XLA sums a softmax over 64 and over 128 positions in another order.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from distill.config import Sampling
from distill.errors import DistillError
from distill.generation.sampling import choose, uniforms
from distill.models import decoder
from distill.models.cache import empty_cache, insert
from distill.models.config import ModelConfig

STEPS = 8
"""Decode steps a round trip to the host; a sample that ends inside wastes the rest of its slot's steps."""
PREFILL_ROWS = 8
"""Prompts that are read together."""


@dataclass(frozen=True)
class Request:
    """One sample: prompt tokens, 64-bit seed, index of the sample, and the most tokens it may have."""

    prompt: tuple[int, ...]
    seed: int
    sample: int
    max_tokens: int


@dataclass(frozen=True)
class Result:
    """What came of a request: tokens with the stop id that ended them, their log-probabilities, and why."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: str  # `stop`, or `length` when max_tokens came first


@dataclass
class _Running:
    index: int
    request: Request
    tokens: list[int]
    logprobs: list[float]


class Engine:
    """Decodes requests in `slots` rows; `max_length` is the longest prompt and completion together."""

    def __init__(
        self,
        config: ModelConfig,
        params: decoder.Params,
        *,
        slots: int,
        max_length: int,
        sampling: Sampling,
        stop_ids: Iterable[int],
        real_vocab: int,
    ):
        if max_length > config.max_positions:
            raise DistillError(
                f"max_target_length is {max_length}, the model's context is {config.max_positions}: lower it"
            )
        self.config, self.params, self.slots = config.reaching(max_length), params, slots
        self.max_length, self.stop_ids = max_length, frozenset(stop_ids)
        self.length = -(-(max_length + STEPS) // 32) * 32
        self.caches = empty_cache(config, slots, self.length, params["embed"].dtype)
        self.state = {
            "token": jnp.zeros(slots, jnp.int32),
            "position": jnp.zeros(slots, jnp.int32),
            "seed": jnp.zeros((slots, 2), jnp.uint32),
            "sample": jnp.zeros(slots, jnp.int32),
        }
        self.sampling, self.real_vocab = sampling, real_vocab

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Result]]:
        """Yield (index of the request, its result), each as soon as it has ended."""
        waiting = deque(enumerate(requests))
        running: dict[int, _Running] = {}
        while waiting or running:
            free = [slot for slot in range(self.slots) if slot not in running]
            while waiting and free:
                self._fill(waiting, free, running)
                yield from self._ended(running, free)
            if running:
                self._advance(running)
                yield from self._ended(running, free)

    def _fill(self, waiting: deque, free: list[int], running: dict[int, _Running]) -> None:
        """Read the next prompts of one length bucket and put their samples in free slots.

        Samples of one prompt stand together in the queue, so a prompt is read once for all that fit.
        """
        bucket = _doubling(len(waiting[0][1].prompt), 16)
        prompts: dict[tuple[int, ...], int] = {}
        placed: list[tuple[int, int]] = []
        while waiting and free and _doubling(len(waiting[0][1].prompt), 16) == bucket:
            prompt = waiting[0][1].prompt
            if prompt not in prompts and len(prompts) == PREFILL_ROWS:
                break
            index, request = waiting.popleft()
            slot = free.pop(0)
            running[slot] = _Running(index, request, [], [])
            placed.append((slot, prompts.setdefault(prompt, len(prompts))))
        tokens = np.zeros((PREFILL_ROWS, bucket), np.int32)
        lengths = np.ones(PREFILL_ROWS, np.int32)
        for prompt, row in prompts.items():
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        fresh = _prefill(self.config, self.params, tokens, lengths)
        slots, rows, samples = (np.full(self.slots, fill, np.int32) for fill in (self.slots, 0, 0))
        seeds = np.zeros((self.slots, 2), np.uint32)
        for i, (slot, row) in enumerate(placed):
            request = running[slot].request
            slots[i], rows[i], samples[i] = slot, row, request.sample
            seeds[i] = request.seed >> 32, request.seed & 0xFFFFFFFF
        self.caches, self.state, token, logprob = _insert(
            self.config,
            self.sampling,
            self.real_vocab,
            fresh,
            self.caches,
            self.state,
            lengths,
            slots,
            rows,
            seeds,
            samples,
        )
        token, logprob = np.asarray(token), np.asarray(logprob)
        for i, (slot, _) in enumerate(placed):
            self._append(running[slot], int(token[i]), float(logprob[i]))

    def _advance(self, running: dict[int, _Running]) -> None:
        self.caches, self.state, tokens, logprobs = _decode(
            self.config, self.sampling, self.real_vocab, self.params, self.caches, self.state
        )
        tokens, logprobs = np.asarray(tokens), np.asarray(logprobs)
        for slot, sample in running.items():
            for token, logprob in zip(tokens[:, slot].tolist(), logprobs[:, slot].tolist(), strict=True):
                if self._reason(sample) is None:
                    self._append(sample, token, logprob)

    def _append(self, sample: _Running, token: int, logprob: float) -> None:
        if not np.isfinite(logprob):
            raise DistillError("the model gave NaN: the weights are damaged, or their dtype is too narrow")
        sample.tokens.append(token)
        sample.logprobs.append(logprob)

    def _reason(self, sample: _Running) -> str | None:
        if sample.tokens[-1] in self.stop_ids:
            return "stop"
        return "length" if len(sample.tokens) >= sample.request.max_tokens else None

    def _ended(self, running: dict[int, _Running], free: list[int]) -> Iterator[tuple[int, Result]]:
        for slot, sample in list(running.items()):
            if (reason := self._reason(sample)) is not None:
                free.append(slot)
                del running[slot]
                yield sample.index, Result(sample.tokens, sample.logprobs, reason)


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


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def _insert(config, sampling, real_vocab, fresh, caches, state, lengths, slots, rows, seeds, samples):
    """Copy prefilled row rows[i] to slot slots[i] (out of range: to none) and draw its first token."""
    prefilled, logits = fresh
    caches, position = insert(caches, prefilled, slots, rows, lengths), lengths[rows]
    token, logprob = choose(sampling, logits[rows], uniforms(seeds, samples, position), real_vocab)
    new = {"token": token, "position": position, "seed": seeds, "sample": samples}
    state = {name: state[name].at[slots].set(new[name], mode="drop") for name in state}
    return caches, state, token, logprob


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def _decode(config, sampling, real_vocab, params, caches, state):
    """STEPS tokens for every slot, [STEPS, slots]; an idle slot's are not looked at."""

    def step(carry, _):
        caches, token, position = carry
        valid = jnp.ones((token.shape[0], 1), jnp.int32)
        hidden, caches = decoder.extend(config, params, caches, token[:, None], position[:, None], valid)
        draw = uniforms(state["seed"], state["sample"], position + 1)
        token, logprob = choose(sampling, decoder.logits(config, params, hidden[:, 0]), draw, real_vocab)
        return (caches, token, position + 1), (token, logprob)

    start = (caches, state["token"], state["position"])
    (caches, token, position), (tokens, logprobs) = jax.lax.scan(step, start, None, length=STEPS)
    return caches, {**state, "token": token, "position": position}, tokens, logprobs


def _doubling(length: int, least: int) -> int:
    """The smallest of least, 2·least, 4·least, ... that holds `length`."""
    while least < length:
        least *= 2
    return least
