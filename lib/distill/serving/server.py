"""OpenAI's routes over one engine, with a bounded queue before it."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from distill.checkpoints.info import ModelInfo
from distill.config.generation import ONE_DEVICE, EngineMesh
from distill.errors import DistillError
from distill.serving.metrics import Metrics
from distill.serving.protocol import Asked, ChatRequest, CompletionRequest, Limits, Problem, parse
from distill.serving.replies import Reply, failure
from distill.serving.text import token_names
from distill.serving.worker import Failed, Job, Worker
from distill.text.chat import prompt_tokens
from distill.text.tokenizer import Tokenizer

LARGEST = 16_000_000  # bytes of a body


@dataclass(frozen=True)
class Serving:
    """How a model is served. `queue` samples may wait; idle_seconds 0: it stays until it is told to go."""

    slots: int
    max_length: int
    queue: int
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    idle_seconds: float = 0
    top_logprobs: int = 0
    sampled_logits: int = 0
    int8: tuple[str, ...] = ()  # of weights, cache
    mesh: EngineMesh = ONE_DEVICE


class Service:
    """One model's routes. Made in the event loop that it serves in."""

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, settings: Serving, worker: Worker):
        self.info, self.tokenizer, self.settings, self.worker = info, tokenizer, settings, worker
        self.facts: dict[str, Any] = {}  # of `models`, once the engine is there
        self.metrics = Metrics(worker, settings.slots)
        self.room = settings.queue + settings.slots
        self.limits = Limits(
            settings.max_length, self.info.vocab_size, tuple(self.info.eos_ids), self.room, settings.top_logprobs,
            settings.sampled_logits,
        )  # fmt: skip
        self.name = token_names(self.tokenizer)
        self.leave: Callable[[], None] = lambda: None

    def app(self) -> Starlette:
        routes = [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/metrics", self.show_metrics),
            Route("/health", self.health),
            Route("/leave", self.asked_to_leave, methods=["POST"]),
        ]
        handlers = {Problem: _explain, HTTPException: _explain, ClientDisconnect: _nobody, DistillError: _refuse}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.add_middleware(_Gate, token=self.settings.token, metrics=self.metrics)
        return app

    async def completions(self, request: Request) -> Response:
        asked = parse(CompletionRequest, await _body(request))
        prompts = [self.tokenizer.encode(p, special=True) if isinstance(p, str) else list(p) for p in asked.prompts()]
        return await self.answer(request, asked, prompts)

    async def chat(self, request: Request) -> Response:
        asked = parse(ChatRequest, await _body(request))
        messages = [message.model_dump() for message in asked.messages]
        if not self.tokenizer.complete:
            await asyncio.to_thread(getattr, self.tokenizer, "hf")  # others' answers go on
        return await self.answer(request, asked, [prompt_tokens(self.tokenizer, messages, "tokenizer")])

    async def answer(self, request: Request, asked: Asked, prompts: list[list[int]]) -> Response:
        """Queue what is asked, and answer it whole or as a stream. Who goes away frees the slots."""
        if asked.model not in (None, self.info.source):
            raise Problem(404, f"model {asked.model} is not served, {self.info.source} is", code="model_not_found")
        job = Job(asked.requests(prompts, self.limits), partial=asked.stream or bool(asked.stop))
        if self.worker.failure:
            raise Problem(503, str(self.worker.failure), headers={"Retry-After": "1"})
        if self.worker.load + len(job.requests) > self.room:
            full = f"{self.worker.load} samples wait already: try again"
            raise Problem(429, full, code="queue_full", headers={"Retry-After": "1"})
        reply = Reply(asked, prompts, self.info.source, self.tokenizer, self.name)
        self.worker.submit(job)
        if asked.stream:
            return StreamingResponse(self.stream(request, job, reply), media_type="text/event-stream")
        async with self.watched(request, job):
            async for _ in self.news(job, reply):
                pass
        return Response(reply.whole(), media_type="application/json")

    async def stream(self, request: Request, job: Job, reply: Reply) -> AsyncIterator[bytes]:
        seen = set()
        async with self.watched(request, job):
            try:
                async for item, piece in self.news(job, reply):
                    yield reply.chunk(item, piece, first=item.index not in seen)
                    seen.add(item.index)
            except Problem as problem:
                yield failure(problem.message)
                return
            except ClientDisconnect:
                return
        yield reply.end()

    async def news(self, job: Job, reply: Reply) -> AsyncIterator[tuple[Any, str]]:
        """All news of a job with their text, until every choice has ended."""
        open_choices = len(job.requests)
        while open_choices:
            item = await job.news.get()
            if item is None:
                raise ClientDisconnect
            if isinstance(item, Failed):
                raise Problem(500, str(item))
            choice = reply.choices[item.index]
            if choice.finish_reason is not None:
                continue  # tokens behind a stop string
            piece = reply.add(item)
            if choice.finish_reason is not None:
                open_choices -= 1
                if item.finish_reason is None:
                    self.worker.cancel_one(job, item.index)
            yield item, piece

    @asynccontextmanager
    async def watched(self, request: Request, job: Job) -> AsyncIterator[None]:
        """Cancel the job when its client goes, or when this block is left before the job's end."""

        async def wait() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.worker.cancel(job)

        watch = asyncio.ensure_future(wait())
        try:
            yield
        finally:
            watch.cancel()
            self.worker.cancel(job)
            self.metrics.seen(job)

    async def models(self, request: Request) -> Response:
        one = {"id": self.info.source, "object": "model", "created": 0, "owned_by": "distill"}
        return JSONResponse(
            {"object": "list", "data": [one | {"max_model_len": self.limits.max_length, "distill": self.facts}]}
        )

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:
        failed = self.worker.failure
        return JSONResponse({"status": str(failed) if failed else "ok"}, 503 if failed else 200)

    async def asked_to_leave(self, request: Request) -> Response:
        if self.worker.load:
            raise Problem(409, f"{self.worker.load} samples are being answered", code="busy")
        self.leave()
        return JSONResponse({"status": "leaving"})


class _Gate:
    """Asks for the token, and counts what was answered. Health is everybody's."""

    def __init__(self, app: Any, token: str | None, metrics: Metrics):
        self.app, self.metrics = app, metrics
        self.expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: dict) -> None:
            if message["type"] == "http.response.start":
                known = scope["path"] if "endpoint" in scope else "other"
                self.metrics.requests.labels(known, message["status"]).inc()
            await send(message)

        given = dict(scope["headers"]).get(b"authorization", b"")
        if self.expected and scope["path"] != "/health" and not hmac.compare_digest(given, self.expected):
            problem = Problem(401, "the token is missing or wrong", code="invalid_api_key")
            refusal = await _explain(None, problem)
            return await refusal(scope, receive, counted)
        return await self.app(scope, receive, counted)


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise Problem(413, f"a body of more than {LARGEST} bytes is refused")
    return b"".join(parts)


async def _explain(request: Request | None, error: Problem | HTTPException) -> Response:
    problem = error if isinstance(error, Problem) else Problem(error.status_code, error.detail)
    return JSONResponse(problem.body(), problem.status, problem.headers)


async def _refuse(request: Request, error: DistillError) -> Response:
    return await _explain(request, Problem(400, str(error)))


async def _nobody(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it; the number is nginx's
