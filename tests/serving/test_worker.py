"""The thread between event loop and engine."""

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from distill.generation.requests import Request, Result
from distill.serving import worker
from distill.serving.worker import Job, Worker


class Counting:
    """An engine that ends all that waits at its next step, and notes how many these were."""

    slots, running = 8, ()

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.steps: list[int] = []
        self.queued = self.submitted = 0

    def submit(self, request: Request) -> int:
        self.submitted += 1
        self.waiting.append(self.submitted)
        return self.submitted

    def step(self, listen: Callable[[], None]) -> list[tuple[int, Result]]:
        self.steps.append(len(self.waiting))
        done, self.waiting = self.waiting, []
        return [(name, Result([5], [0.0], "stop")) for name in done]


def test_what_comes_at_once_to_an_idle_engine_starts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GATHER", 2.0)
    engine = Counting()

    async def three() -> None:
        serving = Worker(lambda: engine, asyncio.get_running_loop())
        await serving.ready
        jobs = [Job([SimpleNamespace()], partial=False) for _ in range(3)]
        for job in jobs:
            serving.submit(job)
            time.sleep(0.05)
        for job in jobs:
            assert (await job.news.get()).finish_reason == "stop"
        serving.stop()

    asyncio.run(three())
    assert engine.steps == [3]
