"""What the engine has compiled: reading prompts, the first token behind one, and decode steps."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from distill.generation.requests import Request
from distill.generation.sampling import Choice, Draw, choose, many_uniforms, sampled_of, uniforms
from distill.models import decoder
from distill.models.cache import SEGMENT, Caches, empty_cache, insert, more_pieces, piece_sizes
from distill.models.config import ModelConfig
from distill.models.panels import for_rows
from distill.parallel.mesh import cache_sharding

STEPS = 8
"""Decode steps a round trip to the host; the slot of a sample that ends inside stands idle for the rest of them."""
LEAST = 16
"""The least piece of a cache is this part of a full one. A cache has as many as the longest sequence needs; each number
is compiled once."""
PREFILL_ROWS = 8
"""Most prompts that are read together, and most samples whose first tokens are drawn together."""


class Telling(NamedTuple):
    """How many of the likeliest tokens, and of draws from all of them, are told a position."""

    top: int = 0
    sampled: int = 0


SILENT = Telling()

STOPS = 4
"""Stop ids of a sample that are known to the device; any others end it at the next round trip to the host."""


@dataclass(frozen=True)
class Setup:
    """What the lanes of an engine share, and their programs are compiled for.

    room, stride: slots of a full cache, and of the least piece of one (`models.cache.piece_sizes`).
    """

    config: ModelConfig
    real_vocab: int
    room: int
    stride: int
    telling: Telling = SILENT
    mesh: Mesh | None = None
    int8_cache: bool = False

    @classmethod
    def of(cls, config: ModelConfig, max_length: int, **rest: Any) -> "Setup":
        """For sequences of at most `max_length`."""
        room = rounded(max_length + STEPS, SEGMENT)
        return cls(config.reaching(max_length), room=room, stride=rounded(-(-room // LEAST), SEGMENT), **rest)

    def attended(self, longest: int) -> int:
        """Slots of the pieces that `longest` positions need."""
        return next(end for end in accumulate(piece_sizes(self.room, self.stride)) if end >= min(longest, self.room))

    def empty_cache(self, rows: int, length: int, dtype: Any, *, chunk: int = 1, piece: int | None = None) -> Caches:
        """`models.cache.empty_cache`, on the mesh if there is one."""
        return _empty_cache(self, rows, length, dtype, chunk, piece)

    def on_mesh(self, caches: Caches) -> Caches:
        """For a trace: caches that lie where they belong."""
        if self.mesh is None:
            return caches
        place = partial(cache_sharding, self.mesh)
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, place(a.shape)), caches)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _empty_cache(setup: Setup, rows: int, length: int, dtype: Any, chunk: int, piece: int | None) -> Caches:
    made = empty_cache(setup.config, rows, length, dtype, chunk=chunk, piece=piece, int8=setup.int8_cache)
    return setup.on_mesh(made)


@partial(jax.jit, static_argnums=(0, 1))
def more_room(setup: Setup, length: int, caches: Caches) -> Caches:
    """The pieces that caches for `length` positions have beyond those of `caches`."""
    return setup.on_mesh(more_pieces(setup.config, caches, length, setup.stride))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(config: ModelConfig, mesh: Mesh | None, params, caches: Caches, tokens, start, lengths):
    """Append columns start to start + T of right-padded prompts [P, T]; gives the logits behind each one's last
    token, as far as it is among them, [PREFILL_ROWS, V]."""
    positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    valid = (positions < lengths[:, None]).astype(jnp.int32)
    last = jnp.clip(lengths - 1 - start, 0, tokens.shape[1] - 1)
    hidden, caches = decoder.extend(config, params, caches, tokens, positions, valid, mesh=mesh, only=last)
    hidden = jnp.pad(hidden, ((0, PREFILL_ROWS - len(hidden)), (0, 0), (0, 0)))
    return caches, decoder.logits(config, params, hidden)[:, 0]


put_in_slots = partial(jax.jit, donate_argnums=0)(insert)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def first_tokens(setup: Setup, logits, state, slots, rows, position, new):
    """Draw the tokens behind prompts with these logits [PREFILL_ROWS, V]: rows[i] for slot slots[i], if it exists.

    As many at a time, however many slots there are: the bits of exp follow the shape of XLA's loop.
    """
    choice = _choose(setup, new["draw"], logits[rows], _numbers(setup, new, position))
    new |= {"token": choice.token, "position": position}
    state = jax.tree.map(lambda old, value: old.at[slots].set(value, mode="drop"), state, new)
    return state, choice


@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def decode(setup: Setup, params, caches: Caches, state):
    """STEPS tokens for every slot, a `Choice` of [STEPS, slots]; what lies behind a sample's end is not looked at.

    A slot is idle from there on: its row is neither written to the caches nor, in our own code, computed.
    """

    def step(carry, numbers):
        caches, token, position = carry
        live = going(state, token, position)[:, None]
        given = params, caches, token[:, None], position[:, None], live.astype(jnp.int32)
        hidden, caches = decoder.extend(setup.config, *given, room=setup.room, mesh=setup.mesh)
        logits = decoder.logits(setup.config, for_rows(params, live), hidden)[:, 0]
        choice = _choose(setup, drawn_as(state["draw"], live[:, 0]), logits, numbers)
        return (caches, jnp.where(live[:, 0], choice.token, token), position + live[:, 0]), choice

    start = caches, state["token"], state["position"]
    ahead = 1 + jnp.arange(STEPS, dtype=jnp.int32)
    numbers = jax.vmap(lambda more: _numbers(setup, state, state["position"] + more))(ahead)
    (caches, token, position), choices = jax.lax.scan(step, start, numbers)
    return caches, {**state, "token": token, "position": position}, choices


def going(state, token: Int[Array, "B"], position: Int[Array, "B"]) -> Bool[Array, "B"]:
    """Whether a slot's sample goes on behind this token, its newest, at this position."""
    return (position < state["last"]) & ~jnp.any(token[:, None] == state["stops"], axis=1)


def drawn_as(draw: Draw, live: Bool[Array, "B"]) -> Draw:
    """How rows are drawn, those of idle slots in the way that needs least."""
    return jax.tree.map(lambda own, least: jnp.where(live, own, least), draw, Draw())


def _numbers(setup: Setup, state, position) -> tuple[Array, Array | None]:
    """What the draws at `position` are made from, and what those are made from that are told beside them."""
    row = state["seed"], state["sample"], position
    return uniforms(*row), many_uniforms(*row, setup.telling.sampled) if setup.telling.sampled else None


def _choose(setup: Setup, draw: Draw, logits: Array, numbers: tuple[Array, Array | None]) -> Choice:
    """The tokens, and what is to be told of them."""
    own, others = numbers
    choice = choose(draw, logits, own, setup.real_vocab, setup.telling.top)
    if others is not None:
        logprobs, ids = sampled_of(logits, others, setup.real_vocab)
        choice = choice._replace(sampled_ids=ids, sampled_logprobs=logprobs)
    return choice


def idle(slots: int) -> dict[str, Any]:
    """The state of slots that no sample is in: of each its newest token, where that and the sample's last one stand,
    what ends it before, and what its draws follow from."""
    return {
        "token": np.zeros(slots, np.int32),
        "position": np.zeros(slots, np.int32),
        "last": np.zeros(slots, np.int32),
        "stops": np.zeros((slots, STOPS), np.int32),
        "seed": np.zeros((slots, 2), np.uint32),
        "sample": np.zeros(slots, np.int32),
        "draw": draws([], slots),
    }


def newcomers(requests: Sequence[Request]) -> dict[str, Any]:
    """The state of PREFILL_ROWS samples or fewer, but for what their first tokens give."""
    seeds, stops = np.zeros((PREFILL_ROWS, 2), np.uint32), np.full((PREFILL_ROWS, STOPS), -1, np.int32)
    for i, request in enumerate(requests):
        seeds[i] = request.seed >> 32, request.seed & 0xFFFFFFFF
        known = sorted(stop for stop in request.stop_ids if 0 <= stop <= np.iinfo(stops.dtype).max)[:STOPS]
        stops[i, : len(known)] = known
    return {
        "last": slot_column([len(r.prompt) + r.max_tokens - 1 for r in requests], PREFILL_ROWS),
        "stops": stops,
        "seed": seeds,
        "sample": slot_column([request.sample for request in requests], PREFILL_ROWS),
        "draw": draws([request.draw for request in requests], PREFILL_ROWS),
    }


def draws(draws: list[Draw], slots: int) -> Draw:
    """Arrays [slots] of sampling parameters; the rest is filled with what needs least."""
    columns = zip(*draws, strict=True) if draws else ((),) * 4
    return Draw(*(slot_column(c, slots, fill=f) for c, f in zip(columns, Draw(), strict=True)))


def slot_column(values: Iterable[Any], slots: int, fill: float = 0) -> np.ndarray:
    """`values` and then `fill`, [slots], float32 or int32 as `fill` is."""
    column = np.full(slots, fill, np.float32 if isinstance(fill, float) else np.int32)
    values = list(values)
    column[: len(values)] = values
    return column


def rounded(value: int, unit: int) -> int:
    """`value` rounded up to a multiple of `unit`."""
    return -(-value // unit) * unit


def decode_on_shapes(
    setup: Setup, params: decoder.Params, slots: int
) -> tuple[Caches, Callable[[], jax.stages.Lowered]]:
    """For a plan: the shapes of full caches, and what traces the decode step on them and on the shapes `params`."""
    make = partial(setup.empty_cache, slots, setup.room, params["embed"].dtype, piece=setup.stride)
    caches = jax.eval_shape(make)
    if setup.mesh is not None:
        place = partial(cache_sharding, setup.mesh)
        caches = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(a.shape)), caches)
    return caches, partial(decode.lower, setup, params, caches, jax.eval_shape(partial(idle, slots)))
