"""The thread that owns the engine, and with it JAX. Jobs come in, tokens go out, both without waiting."""

import asyncio
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread

from distill.generation.engine import Engine
from distill.generation.requests import Request, Result


@dataclass(frozen=True)
class News:
    """New tokens of a job's request `index`; with a finish_reason, its last ones."""

    index: int
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str | None
    told: dict[str, list]  # what the engine was built to tell of each token, see `Result`


GATHER = 0.005
"""Seconds that an idle engine waits after a request for the next one: what comes at once is read together, and no
decode steps go by with most slots empty."""


class Failed(Exception):
    """The engine cannot go on; said in its own words."""


@dataclass(eq=False)
class Job:
    """Requests of one client. `news` ends with None when it was cancelled, or with what went wrong.

    partial: tokens are told as they come; else all of a request at its end.
    """

    requests: list[Request]
    partial: bool
    news: asyncio.Queue[News | Failed | None] = field(default_factory=asyncio.Queue)
    left: set[int] = field(default_factory=set)  # indices of requests that have not ended
    started: float = field(default_factory=time.monotonic)
    first: float | None = None  # when its first token came


class Worker:
    """Takes jobs on the event loop's side, runs them on the engine's. All counters belong to the loop."""

    def __init__(self, build: Callable[[], Engine], loop: asyncio.AbstractEventLoop):
        self.build, self.loop = build, loop
        self.jobs: set[Job] = set()
        self.tokens = 0  # ever generated
        self.waiting = self.running = 0  # requests without and with a slot, as the engine last said
        self.touched = time.monotonic()  # when there was last something to do
        self.ready: asyncio.Future[Engine] = loop.create_future()
        self.failure: Failed | None = None
        self._inbox: SimpleQueue[tuple[str, Job] | None] = SimpleQueue()
        self._names: dict[int, tuple[Job, int]] = {}  # the engine's requests: of which job, and which of its
        self._told: dict[int, int] = {}  # tokens of a request that its client knows
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Requests that have not ended."""
        return sum(len(job.left) for job in self.jobs)

    def submit(self, job: Job) -> None:
        """Run a job; its news start to come."""
        self.touched = time.monotonic()
        job.left = set(range(len(job.requests)))
        self.jobs.add(job)
        self._inbox.put(("submit", job))

    def cancel(self, job: Job) -> None:
        """Forget a job and free its slots; nothing to do for one that has ended."""
        if job in self.jobs:
            self.jobs.remove(job)
            self.touched = time.monotonic()
            job.news.put_nowait(None)
            self._inbox.put(("cancel", job))

    def cancel_one(self, job: Job, index: int) -> None:
        """Forget one request of a job: its text is complete before its tokens are."""
        if index in job.left:
            self._ended(job, index)
            self._inbox.put((f"cancel {index}", job))

    def stop(self) -> None:
        """End the thread after its current step."""
        self._inbox.put(None)
        self._thread.join(30)

    # On the loop's side -----------------------------------------------------------------------------------------

    def _deliver(self, news: list[tuple[Job, News]], waiting: int, running: int) -> None:
        self.waiting, self.running = waiting, running
        self.touched = now = time.monotonic()
        for job, item in news:
            self.tokens += len(item.tokens)
            if job in self.jobs and item.index in job.left:
                job.first = job.first or now
                job.news.put_nowait(item)
                if item.finish_reason is not None:
                    self._ended(job, item.index)

    def _ended(self, job: Job, index: int) -> None:
        job.left.remove(index)
        if not job.left:
            self.jobs.remove(job)

    def _fail(self, failure: Failed) -> None:
        self.failure = failure
        if not self.ready.done():
            self.ready.set_exception(failure)
        for job in self.jobs:
            job.news.put_nowait(failure)
        self.jobs.clear()

    # On the engine's side ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            engine = self.build()
            self.loop.call_soon_threadsafe(self.ready.set_result, engine)
            self._serve(engine)
        except Exception as error:  # whatever it is, clients must hear of it rather than wait
            traceback.print_exc()
            self.loop.call_soon_threadsafe(self._fail, Failed(f"{type(error).__name__}: {error}"))

    def _serve(self, engine: Engine) -> None:
        while True:
            idle = not (engine.waiting or engine.running)
            if not self._listen(engine, wait=None if idle else 0.0, gather=GATHER if idle else 0.0):
                return
            news = []
            for name, result in engine.step(partial(self._listen, engine)):
                job, index = self._names[name]
                if job.partial or result.finish_reason is not None:
                    news.append((job, _since(self._told[name], index, result)))
                    self._told[name] = len(result.tokens)
                if result.finish_reason is not None:
                    del self._names[name], self._told[name]
            self.loop.call_soon_threadsafe(self._deliver, news, engine.queued, engine.running)

    def _listen(self, engine: Engine, wait: float | None = 0.0, gather: float = 0.0) -> bool:
        """Do what was ordered; False when it was to stop.

        wait: seconds for a first order, None: as long as it takes. gather: and for each next one, while slots are left.
        """
        with suppress(Empty):
            while (order := self._inbox.get(timeout=wait)) is not None:
                self._obey(engine, *order)
                wait = gather if engine.queued < engine.slots else 0.0
            self._inbox.put(None)  # for the next time that somebody listens
            return False
        return True

    def _obey(self, engine: Engine, verb: str, job: Job) -> None:
        if verb == "submit":
            for index, request in enumerate(job.requests):
                name = engine.submit(request)
                self._names[name], self._told[name] = (job, index), 0
            return
        one = verb.removeprefix("cancel").strip()
        for name in [n for n, (other, index) in self._names.items() if other is job and one in ("", str(index))]:
            engine.cancel(name)
            del self._names[name], self._told[name]


def _since(known: int, index: int, result: Result) -> News:
    told = {name: values[known:] for name, values in result.told.items()}
    return News(index, result.tokens[known:], result.logprobs[known:], result.finish_reason, told)
