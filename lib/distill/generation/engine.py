"""The engine: slots that decode together, refilled as samples end. Tokens in, tokens out.

A sample depends on (seed, prompt, sample index) alone, not on its slot or neighbours. Every compiled shape is
fixed by the engine and the sample's own length, rows of a product do not see each other, and how much of the
caches is attended, which does follow the longest neighbour, reaches no bit (models/attention.py).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill.errors import DistillError
from distill.generation.sampling import Choice, Draw, choose, many_uniforms, sampled_of, uniforms
from distill.models import decoder
from distill.models.cache import SEGMENT, Caches, empty_cache, insert, resized
from distill.models.config import ModelConfig
from distill.parallel.mesh import cache_sharding

STEPS = 8
"""Decode steps a round trip to the host; a sample that ends inside wastes the rest of its slot's steps."""
WINDOWS = 4
"""Sizes that the caches have between empty and full, each compiled once."""
PREFILL_TOKENS, PREFILL_ROWS = 256, 8
"""Short prompts are read together, as many as come to this."""
CHUNK = 512
"""Longer prompts are read in pieces of this many tokens, with decode steps of the others in between."""
AHEAD = 64
"""Waiting prompts among which those of one length are looked for."""
SAMPLED = Draw()
TOLD = Choice._fields[2:]
"""What can be told of a token beside itself and its log-probability."""


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


class Telling(NamedTuple):
    """How many of the likeliest tokens, and of draws from all of them, are told a position."""

    top: int = 0
    sampled: int = 0


@dataclass
class Reading:
    """Prompts of one length bucket that are read together, a row each: CHUNK tokens at a time if they are longer."""

    rows: dict[tuple[int, ...], int]
    tokens: np.ndarray  # [P, bucket]
    lengths: np.ndarray  # [P]
    caches: Caches
    done: int = 0  # tokens read
    logits: jax.Array | None = None  # [PREFILL_ROWS, V] behind each last token, once all is read


class Engine:
    """Decodes requests in `slots` rows; `max_length` is the longest prompt and completion together.

    top, sampled: tell as many of the likeliest tokens a position, and draws from the distribution. mesh: the devices,
    if more than one; `params` lie on it.
    int8_cache: keys and values in eight bits; `models.int8.quantize_weights` does that to `params`.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: decoder.Params,
        *,
        slots: int,
        max_length: int,
        real_vocab: int,
        top: int = 0,
        sampled: int = 0,
        mesh: Mesh | None = None,
        int8_cache: bool = False,
    ):
        if max_length > config.max_positions:
            raise DistillError(
                f"max_target_length is {max_length}, the model's context is {config.max_positions}: lower it"
            )
        if top > real_vocab:
            raise DistillError(f"{top} logits a position, the vocabulary has {real_vocab}: ask for fewer")
        self.config, self.params, self.slots, self.real_vocab = config.reaching(max_length), params, slots, real_vocab
        self.max_length, self.mesh, self.int8_cache = max_length, mesh, int8_cache
        self.telling = Telling(top, sampled)
        self.room = _rounded(max_length + STEPS, SEGMENT)
        self.stride = _rounded(-(-self.room // WINDOWS), SEGMENT)
        self.attended = min(self.stride, self.room)  # positions that the caches hold now
        self.caches = self._empty_cache(slots, self.attended)
        self.state = {
            "token": jnp.zeros(slots, jnp.int32),
            "position": jnp.zeros(slots, jnp.int32),
            "seed": jnp.zeros((slots, 2), jnp.uint32),
            "sample": jnp.zeros(slots, jnp.int32),
            "draw": _draws([], slots),
        }
        self.waiting: dict[tuple[int, ...], deque[tuple[int, Request]]] = {}  # by prompt, in order of arrival
        self.running: dict[int, tuple[int, Request, Result]] = {}
        self.reading: Reading | None = None  # the last prompts that were read, or are being read
        self.free = list(range(slots))
        self.submitted = 0

    def renew(self, params: decoder.Params) -> None:
        """Other weights of the same shapes, while no request is here. What was read with the old ones is forgotten."""
        if self.running or self.waiting:
            raise ValueError("a sample would begin with one model and end with another")
        self.params, self.reading = params, None

    @property
    def queued(self) -> int:
        """Requests without a slot."""
        return sum(map(len, self.waiting.values()))

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
        self.waiting.setdefault(request.prompt, deque()).append((self.submitted, request))
        return self.submitted

    def cancel(self, name: int) -> None:
        """Forget a request and free its slot; a name that is done already is none."""
        for prompt, asked in list(self.waiting.items()):
            self.waiting[prompt] = deque(item for item in asked if item[0] != name)
            if not self.waiting[prompt]:
                del self.waiting[prompt]
        for slot, (running, _, _) in list(self.running.items()):
            if running == name:
                self._release(slot)

    def step(self) -> list[tuple[int, Result]]:
        """Fill free slots, decode STEPS tokens in all; gives every request that has new tokens, with its result."""
        moved: dict[int, Result] = {}
        while self.waiting and self.free:
            if not self._read():
                break  # a long prompt goes on at the next step
            self._fill(moved)
        if self.running:
            self._fit()
            state = self.params, self.caches, self.state
            self.caches, self.state, choices = _decode(
                self.config, self.real_vocab, self.telling, self.room, self.mesh, *state
            )
            columns = _columns(choices)
            for slot in list(self.running):
                self._append(slot, {name: column[slot] for name, column in columns.items()}, moved)
        return list(moved.items())

    def _read(self) -> bool:
        """See to it that prompts are read that wait; False where the next piece of a long one comes first."""
        reading = self.reading
        if reading is None or not any(prompt in self.waiting for prompt in reading.rows):
            reading = self.reading = self._next()
        if reading.logits is not None:
            return True
        start, stop = reading.done, min(reading.done + CHUNK, reading.tokens.shape[1])
        reading.caches, last = _prefill(
            self.config, self.mesh, self.params, reading.caches, reading.tokens[:, start:stop], start, reading.lengths
        )
        reading.done = stop
        if stop == reading.tokens.shape[1]:
            reading.logits = last
        return reading.logits is not None

    def _next(self) -> Reading:
        """The first prompt that waits, and others of its length bucket. The shape follows from the bucket alone."""
        head = next(iter(self.waiting))
        bucket = _bucket(len(head))
        count = max(1, min(PREFILL_ROWS, PREFILL_TOKENS // bucket))
        alike = (prompt for prompt in islice(self.waiting, AHEAD) if _bucket(len(prompt)) == bucket)
        rows = {prompt: row for row, prompt in enumerate(islice(alike, count))}
        tokens, lengths = np.zeros((count, bucket), np.int32), np.ones(count, np.int32)
        for prompt, row in rows.items():
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        return Reading(rows, tokens, lengths, self._empty_cache(count, bucket, chunk=min(bucket, CHUNK)))

    def _fill(self, moved: dict[int, Result]) -> None:
        """Put samples of the prompts that were read in free slots, and draw their first tokens."""
        reading, placed = self.reading, []
        for prompt, row in reading.rows.items():
            asked = self.waiting.get(prompt)
            while asked and self.free:
                name, request = asked.popleft()
                slot = self.free.pop(0)
                self.running[slot] = name, request, Result()
                placed.append((slot, row, request))
            if asked is not None and not asked:
                del self.waiting[prompt]
        new = {
            "slot": _column([slot for slot, _, _ in placed], self.slots, fill=self.slots),
            "row": _column([row for _, row, _ in placed], self.slots),
            "sample": _column([request.sample for _, _, request in placed], self.slots),
            "seed": np.zeros((self.slots, 2), np.uint32),
            "draw": _draws([request.draw for _, _, request in placed], self.slots),
        }
        for i, (_, _, request) in enumerate(placed):
            new["seed"][i] = request.seed >> 32, request.seed & 0xFFFFFFFF
        self._fit()
        slots, rows = new.pop("slot"), new.pop("row")
        few = min(self.slots, 1 << (len(placed) - 1).bit_length())  # a copy: its shape reaches no bit
        self.caches = _insert(self.caches, reading.caches, slots[:few], rows[:few], reading.lengths)
        position = np.where(slots < self.slots, reading.lengths[rows], 0)
        self.state, choice = _first(
            self.real_vocab, self.telling, reading.logits, self.state, slots, rows, position, new
        )
        columns = _columns(jax.tree.map(lambda a: a[None], choice))
        for i, (slot, _, _) in enumerate(placed):
            self._append(slot, {name: column[i] for name, column in columns.items()}, moved)

    def _fit(self) -> None:
        """Give the caches the size that the running rows need for STEPS more tokens."""
        longest = max(len(request.prompt) + len(result.tokens) for _, request, result in self.running.values())
        attended = min(_rounded(longest + STEPS, self.stride), self.room)
        if attended != self.attended:
            self.caches, self.attended = resized(self.config, self.caches, attended), attended

    def _append(self, slot: int, new: dict[str, np.ndarray], moved: dict[int, Result]) -> None:
        """Give a slot's tokens to its request, up to its end; at the end the slot is free."""
        name, request, result = self.running[slot]
        moved[name], before = result, len(result.tokens)
        for token, logprob in zip(new["token"].tolist(), new["logprob"].tolist(), strict=True):
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
                break
        for column in new.keys() & set(TOLD):
            result.told.setdefault(column, []).extend(new[column][: len(result.tokens) - before])

    def _release(self, slot: int) -> None:
        del self.running[slot]
        self.free.append(slot)

    def _empty_cache(self, rows: int, length: int, chunk: int = 1) -> Caches:
        dtype, int8 = self.params["embed"].dtype, self.int8_cache
        make = partial(empty_cache, self.config, rows, length, dtype, chunk=chunk, int8=int8)
        if self.mesh is None:
            return make()
        shapes = jax.eval_shape(make)
        return jax.jit(make, out_shardings=jax.tree.map(lambda a: cache_sharding(self.mesh, a.shape), shapes))()


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _prefill(config: ModelConfig, mesh: Mesh | None, params, caches: Caches, tokens, start, lengths):
    """Append columns start to start + T of right-padded prompts [P, T]; gives the logits behind each one's last
    token, as far as it is among them, [PREFILL_ROWS, V]."""
    positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    valid = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, caches = decoder.extend(config, params, caches, tokens, positions, valid, mesh=mesh)
    last = jnp.clip(lengths - 1 - start, 0, tokens.shape[1] - 1)
    last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    last = jnp.pad(last, ((0, PREFILL_ROWS - len(last)), (0, 0)))
    return caches, decoder.logits(config, params, last)


_insert = partial(jax.jit, donate_argnums=0)(insert)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _first(real_vocab: int, telling: Telling, logits, state, slots, rows, position, new):
    """Draw the tokens behind prompts with these logits [PREFILL_ROWS, V]: rows[i] for slot slots[i], if it exists."""
    choice = _choose(real_vocab, telling, new, logits[rows], position)
    new |= {"token": choice.token, "position": position}
    state = jax.tree.map(lambda old, value: old.at[slots].set(value, mode="drop"), state, new)
    return state, choice


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=(6, 7))
def _decode(
    config: ModelConfig, real_vocab: int, telling: Telling, room: int, mesh: Mesh | None, params, caches, state
):
    """STEPS tokens for every slot, a `Choice` of [STEPS, slots]; an idle slot's are not looked at."""

    def step(carry, _):
        caches, token, position = carry
        valid = jnp.ones((token.shape[0], 1), jnp.int32)
        hidden, caches = decoder.extend(
            config, params, caches, token[:, None], position[:, None], valid, room=room, mesh=mesh
        )
        choice = _choose(real_vocab, telling, state, decoder.logits(config, params, hidden[:, 0]), position + 1)
        return (caches, choice.token, position + 1), choice

    start = caches, state["token"], state["position"]
    (caches, token, position), choices = jax.lax.scan(step, start, None, length=STEPS)
    return caches, {**state, "token": token, "position": position}, choices


def _choose(real_vocab: int, telling: Telling, state, logits, position) -> Choice:
    """The tokens at `position`, and what is to be told of them."""
    row = state["seed"], state["sample"], position
    choice = choose(state["draw"], logits, uniforms(*row), real_vocab, telling.top)
    if telling.sampled:
        logprobs, ids = sampled_of(logits, many_uniforms(*row, telling.sampled), real_vocab)
        choice = choice._replace(sampled_ids=ids, sampled_logprobs=logprobs)
    return choice


def _columns(choices: Choice) -> dict[str, np.ndarray]:
    """Of [steps, slots, ...] the parts that are told, each as [slots, steps, ...]."""
    untold = set(TOLD) if choices.top_ids is None and choices.sampled_ids is None else set()
    told = {name: part for name, part in choices._asdict().items() if part is not None and name not in untold}
    return {name: np.asarray(part).swapaxes(0, 1) for name, part in jax.device_get(told).items()}


def _draws(draws: list[Draw], slots: int) -> Draw:
    """Arrays [slots] of sampling parameters; the rest is filled with what needs least."""
    columns = zip(*draws, strict=True) if draws else ((),) * 4
    rest = Draw(temperature=0.0)
    return Draw(*(_column(c, slots, fill=f) for c, f in zip(columns, rest, strict=True)))


def _column(values: Iterable[Any], slots: int, fill: float = 0) -> np.ndarray:
    """`values` and then `fill`, [slots], float32 or int32 as `fill` is."""
    column = np.full(slots, fill, np.float32 if isinstance(fill, float) else np.int32)
    values = list(values)
    column[: len(values)] = values
    return column


def _bucket(length: int) -> int:
    """The length that a prompt is padded to: 16, 32, 48, 64, 96, 128, 192, ... CHUNK, 2 CHUNK, 3 CHUNK, ..."""
    if length > CHUNK:
        return _rounded(length, CHUNK)
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 32 and length <= power * 3 // 4 else power


def _rounded(value: int, unit: int) -> int:
    """`value` rounded up to a multiple of `unit`."""
    return -(-value // unit) * unit


def decode_on_shapes(
    config: ModelConfig,
    params: decoder.Params,
    *,
    slots: int,
    max_length: int,
    mesh: Mesh | None = None,
    int8_cache: bool = False,
) -> tuple[Caches, Callable[[], jax.stages.Lowered]]:
    """For a plan: the shapes of full caches, and what traces the decode step on them and on the shapes `params`."""
    config, room = config.reaching(max_length), _rounded(max_length + STEPS, SEGMENT)
    caches = jax.eval_shape(partial(empty_cache, config, slots, room, params["embed"].dtype, int8=int8_cache))
    if mesh is not None:
        there = partial(cache_sharding, mesh)
        caches = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there(a.shape)), caches)
    whole, seed = jax.ShapeDtypeStruct((slots,), jnp.int32), jax.ShapeDtypeStruct((slots, 2), jnp.uint32)
    state = {"token": whole, "position": whole, "seed": seed, "sample": whole, "draw": _draws([], slots)}
    return caches, partial(_decode.lower, config, config.vocab_size, Telling(), room, mesh, params, caches, state)
