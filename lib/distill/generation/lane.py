"""A lane: slots that decode together, in one program, while the other lanes of an engine do theirs.

Nothing here waits for the device but `collect`: reading, placing and decoding are put in its queue.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from distill.errors import DistillError
from distill.generation.programs import (
    PREFILL_ROWS,
    STEPS,
    Setup,
    decode,
    first_tokens,
    idle,
    more_room,
    newcomers,
    put_in_slots,
    slot_column,
)
from distill.generation.requests import Request, Result
from distill.generation.sampling import Choice
from distill.models import decoder
from distill.models.cache import Caches, cut_to, joined_with

TOLD = Choice._fields[2:]
"""What can be told of a token beside itself and its log-probability."""


class Lane:
    """`slots` rows of caches, and who is in them."""

    def __init__(self, setup: Setup, slots: int, dtype: Any, *, alone: bool):
        self.setup, self.slots = setup, slots
        # XLA runs what one thread asks for in that order. On a mesh all processes must ask in the same one.
        self.thread = None if alone else ThreadPoolExecutor(1, thread_name_prefix="lane")
        self.attended = setup.attended(1)  # positions that the caches hold now
        self.caches = setup.empty_cache(slots, self.attended, dtype, piece=setup.stride)
        self.state = idle(slots)
        self.running: dict[int, tuple[int, Request, Result]] = {}
        self.free = list(range(slots))
        self.firsts: list[tuple[list[tuple[int, int]], Choice]] = []  # slots that were filled, for whom, first tokens
        self.going: Future = Future()  # caches, state and tokens behind the decode steps that are under way

    def place(
        self, asked: Iterable[tuple[int, int, Request]], fresh: Caches, logits: jax.Array, lengths: np.ndarray
    ) -> None:
        """Put requests (name, row, request) in free slots and draw their first tokens.

        fresh, logits, lengths: of the prompts that were read, a row each.
        """
        placed = []
        for name, row, request in asked:
            slot = self.free.pop(0)
            self.running[slot] = name, request, Result()
            placed.append((slot, row, request))
        self._fit()
        for start in range(0, len(placed), PREFILL_ROWS):
            slots, rows, requests = zip(*placed[start : start + PREFILL_ROWS], strict=True)
            to = slot_column(slots, PREFILL_ROWS, fill=self.slots)  # beyond the last slot: put nowhere
            of = slot_column(rows, PREFILL_ROWS)
            few = 1 << (len(slots) - 1).bit_length()  # a copy: its shape reaches no bit
            self.caches = put_in_slots(self.caches, fresh, to[:few], of[:few], lengths)
            self.state, choice = first_tokens(self.setup, logits, self.state, to, of, lengths[of], newcomers(requests))
            self.firsts.append(([(slot, self.running[slot][0]) for slot in slots], choice))

    def start(self, params: decoder.Params) -> None:
        """STEPS tokens more for every slot."""
        self._fit()
        asked = self.setup, params, self.caches, self.state
        if self.thread is None:
            self.going = Future()
            self.going.set_result(decode(*asked))
        else:
            self.going = self.thread.submit(decode, *asked)

    def first(self) -> dict[int, Result]:
        """Wait for the first tokens that were drawn; gives their requests, by name."""
        moved: dict[int, Result] = {}
        firsts, self.firsts = self.firsts, []
        for placed, choice in firsts:
            told = _told(choice)
            for i, (slot, name) in enumerate(placed):
                if slot in self.running and self.running[slot][0] == name:  # not cancelled meanwhile
                    self._append(slot, {column: values[i : i + 1] for column, values in told.items()}, moved)
        return moved

    def collect(self) -> dict[int, Result]:
        """Wait for what was started; gives every request that has new tokens, by name."""
        moved: dict[int, Result] = {}
        self.caches, self.state, choices = self.going.result()
        told = _told(choices)
        for slot in list(self.running):
            self._append(slot, {name: values[:, slot] for name, values in told.items()}, moved)
        return moved

    def cancel(self, name: int) -> None:
        """Free the slot of a request, if it is here."""
        for slot, (running, _, _) in list(self.running.items()):
            if running == name:
                self._release(slot)

    def _fit(self) -> None:
        """Give the caches the size that the running rows need for STEPS more tokens."""
        longest = max(len(request.prompt) + max(1, len(result.tokens)) for _, request, result in self.running.values())
        attended = self.setup.attended(longest + STEPS)
        if attended < self.attended:
            self.caches = cut_to(self.setup.config, self.caches, attended, self.setup.stride)
        elif attended > self.attended:
            self.caches = joined_with(self.caches, more_room(self.setup, attended, self.caches))
        self.attended = attended

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


def _told(choice: Choice) -> dict[str, np.ndarray]:
    """The parts of a choice that are told, on the host."""
    untold = set(TOLD) if choice.top_ids is None and choice.sampled_ids is None else set()
    told = {name: part for name, part in choice._asdict().items() if part is not None and name not in untold}
    return {name: np.asarray(part) for name, part in jax.device_get(told).items()}
