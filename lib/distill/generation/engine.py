"""The engine: slots that decode together, refilled as samples end. Tokens in, tokens out.

A sample depends on (seed, prompt, sample index) alone, not on its slot or neighbours. Every compiled shape is
fixed by the engine and the sample's own length, rows of a product do not see each other, and how much of the
caches is attended, which does follow the longest neighbour, reaches no bit (models/attention.py).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import jax
import numpy as np
from jax.sharding import Mesh

from distill.errors import DistillError
from distill.generation.lane import Lane
from distill.generation.programs import PREFILL_ROWS, Setup, Telling, prefill, rounded
from distill.generation.requests import Request, Result
from distill.models import decoder
from distill.models.cache import Caches
from distill.models.config import ModelConfig
from distill.models.panels import Panels
from distill.native.weights import for_products

LANE = 32
"""Slots that are worth a lane of their own on a CPU: fewer rows would pay for reading the weights twice."""
PREFILL_TOKENS = 256
"""Short prompts are read together, as many as come to this."""
CHUNK = 512
"""Longer prompts are read in pieces of this many tokens, with decode steps of the others in between."""
AHEAD = 64
"""Waiting prompts among which those of one length are looked for."""


@dataclass
class Reading:
    """Prompts of one length bucket that are read together, a row each: CHUNK tokens at a time if they are longer."""

    rows: dict[tuple[int, ...], int]
    tokens: np.ndarray  # [P, bucket]
    lengths: np.ndarray  # [P]
    caches: Caches
    newest: int  # of the requests that had been asked when it was begun
    done: int = 0  # tokens read
    logits: jax.Array | None = None  # [PREFILL_ROWS, V] behind each last token, once all is read


class Engine:
    """Decodes requests in `slots` rows; `max_length` is the longest prompt and completion together.

    On a CPU many slots are two lanes: what XLA does with one core in one leaves the other to the other's products.
    top, sampled: tell as many of the likeliest tokens a position, and draws from the distribution. mesh: the devices,
    if more than one; `params` lie on it.
    int8_cache: keys and values in eight bits; `models.int8.quantize_weights` does that to `params`.
    own: `params` are the engine's alone, which need not keep them beside its own layout of them.
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
        own: bool = False,
    ):
        if max_length > config.max_positions:
            raise DistillError(
                f"max_target_length is {max_length}, the model's context is {config.max_positions}: lower it"
            )
        if top > real_vocab:
            raise DistillError(f"{top} logits a position, the vocabulary has {real_vocab}: ask for fewer")
        self.slots, self.max_length = slots, max_length
        self.setup = Setup.of(
            config, max_length, real_vocab=real_vocab, telling=Telling(top, sampled), mesh=mesh, int8_cache=int8_cache
        )
        self.on_cpu = mesh is None and jax.default_backend() == "cpu"
        count = 2 if slots >= 2 * LANE and slots % 2 == 0 and self.on_cpu else 1
        self.rows, self.dtype = slots // count, params["embed"].dtype
        self.params = self._laid_out(params, own)
        self.lanes = [Lane(self.setup, self.rows, self.dtype, alone=count == 1) for _ in range(count)]
        self.started: deque[Lane] = deque()  # whose decode steps are under way, the oldest first
        self.waiting: dict[tuple[int, ...], deque[tuple[int, Request]]] = {}  # by prompt, in order of arrival
        self.reading: Reading | None = None  # the last prompts that were read, or are being read
        self.submitted = 0

    def renew(self, params: decoder.Params) -> None:
        """Other weights of the same shapes, while no request is here. What was read with the old ones is forgotten."""
        if self.running or self.waiting:
            raise ValueError("a sample would begin with one model and end with another")
        self.params = self.reading = None  # before others take as much memory
        self.params = self._laid_out(params)

    def _laid_out(self, params: decoder.Params, own: bool = False) -> decoder.Params:
        return for_products(self.setup.config, params, own=own) if self.on_cpu else params

    @property
    def kernels(self) -> str:
        """`c` where products and attention are our own code, `xla` elsewhere; a sample's last bits follow from it."""
        return "c" if isinstance(self.params["embed"], Panels) else "xla"

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return sum(len(lane.running) for lane in self.lanes)

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
        for lane in self.lanes:
            lane.cancel(name)

    def step(self, listen: Callable[[], None] = lambda: None) -> list[tuple[int, Result]]:
        """Fill free slots and start each lane that is idle. Then wait for first tokens, if any were drawn, else for
        the lane that was started first.

        listen: called between readings; it may submit and cancel, so that what comes meanwhile gets a slot now and
        not behind the next decode steps. Gives every request that has new tokens, with its result.
        """
        for lane in self.lanes:
            if lane not in self.started:
                while self.waiting and lane.free:
                    if not self._read():
                        break  # a long prompt goes on at the next step
                    self._fill(lane)
                    listen()
                if lane.running:
                    lane.start(self.params)
                    self.started.append(lane)
        if early := [item for lane in self.lanes if lane.firsts for item in lane.first().items()]:
            return early
        return list(self.started.popleft().collect().items()) if self.started else []

    def _read(self) -> bool:
        """See to it that prompts are read that wait; False where the next piece of a long one comes first."""
        reading = self.reading
        if reading is None or not any(self._asked_before(reading, prompt) for prompt in reading.rows):
            reading = self.reading = self._next()
        if reading.logits is not None:
            return True
        start, stop = reading.done, min(reading.done + CHUNK, reading.tokens.shape[1])
        piece = reading.caches, reading.tokens[:, start:stop], start, reading.lengths
        reading.caches, last = prefill(self.setup.config, self.setup.mesh, self.params, *piece)
        reading.done = stop
        if stop == reading.tokens.shape[1]:
            reading.logits = last
        return reading.logits is not None

    def _asked_before(self, reading: Reading, prompt: tuple[int, ...]) -> bool:
        """Whether a prompt waits since before a reading: what is asked for later is behind all that waits already."""
        asked = self.waiting.get(prompt)
        return bool(asked) and asked[0][0] <= reading.newest

    def _next(self) -> Reading:
        """The prompt that waits longest, and others of its length bucket. The shape follows from the bucket alone."""
        head = min(self.waiting, key=lambda prompt: self.waiting[prompt][0][0])
        bucket = _bucket(len(head))
        count = max(1, min(PREFILL_ROWS, PREFILL_TOKENS // bucket))
        others = (prompt for prompt in islice(self.waiting, AHEAD) if _bucket(len(prompt)) == bucket and prompt != head)
        rows = {prompt: row for row, prompt in enumerate([head, *islice(others, count - 1)])}
        tokens, lengths = np.zeros((count, bucket), np.int32), np.ones(count, np.int32)
        for prompt, row in rows.items():
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        caches = self.setup.empty_cache(count, bucket, self.dtype, chunk=min(bucket, CHUNK))
        return Reading(rows, tokens, lengths, caches, self.submitted)

    def _fill(self, lane: Lane) -> None:
        """Put samples of the prompts that were read in free slots of a lane."""
        reading, placed = self.reading, []
        for prompt, row in reading.rows.items():
            asked = self.waiting.get(prompt)
            while self._asked_before(reading, prompt) and len(placed) < len(lane.free):
                name, request = asked.popleft()
                placed.append((name, row, request))
            if asked is not None and not asked:
                del self.waiting[prompt]
        lane.place(placed, reading.caches, reading.logits, reading.lengths)


def _bucket(length: int) -> int:
    """The length that a prompt is padded to: 16, 32, 48, 64, 96, 128, 192, ... CHUNK, 2 CHUNK, 3 CHUNK, ..."""
    if length > CHUNK:
        return rounded(length, CHUNK)
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 32 and length <= power * 3 // 4 else power
