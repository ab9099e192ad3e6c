"""What the server tells Prometheus."""

import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from distill.serving.worker import Job, Worker

SPAN = 10.0  # seconds that the current speed is taken over


class Metrics:
    """Counters of one server, and gauges that look at its worker when asked."""

    def __init__(self, worker: Worker, slots: int):
        self.worker = worker
        self.samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])  # (when, tokens by then)
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, text: str, value) -> None:
            Gauge(name, text, registry=registry).set_function(value)

        gauge("distill_queue_requests", "Samples that wait for a slot", lambda: worker.waiting)
        gauge("distill_slots_busy", "Slots that decode", lambda: worker.running)
        gauge("distill_slots", "Slots there are", lambda: slots)
        gauge("distill_tokens_per_second", f"New tokens a second, over the last {SPAN:.0f} s", self.speed)
        self.told = 0
        self.tokens = Counter("distill_generated_tokens", "New tokens", registry=registry)
        self.requests = Counter(
            "distill_requests", "Requests by route and status", ["path", "status"], registry=registry
        )
        self.first_token = Histogram(
            "distill_time_to_first_token_seconds", "From the request to its first token", registry=registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )  # fmt: skip

    def seen(self, job: Job) -> None:
        """A job has ended, in whatever way."""
        if job.first is not None:
            self.first_token.observe(job.first - job.started)

    def speed(self) -> float:
        """Tokens a second since the last look that is SPAN or more ago."""
        now, tokens = time.monotonic(), self.worker.tokens
        self.samples.append((now, tokens))
        while len(self.samples) > 2 and now - self.samples[1][0] >= SPAN:
            self.samples.popleft()
        when, before = self.samples[0]
        return (tokens - before) / max(now - when, 1e-9)

    def text(self) -> bytes:
        """In Prometheus' format."""
        now = self.worker.tokens
        self.tokens.inc(now - self.told)
        self.told = now
        return generate_latest(self.registry)
