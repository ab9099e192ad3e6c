"""A server's life: load the model, open the port, say where, and go when told or when nobody has asked for long."""

import asyncio
import gc
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from distill.checkpoints.info import ModelInfo, read_info
from distill.checkpoints.store import load_weights
from distill.closure import digest, digests
from distill.errors import DistillError
from distill.generation import engine
from distill.models.int8 import quantize_weights
from distill.parallel.mesh import engine_mesh
from distill.parallel.runtime import cache_folder
from distill.serving.server import Service, Serving
from distill.serving.worker import Failed, Worker
from distill.text.tokenizer import load_tokenizer

LINGER = 2  # seconds that open connections have when the server goes
KEEP_ALIVE = 30
"""Seconds that an idle connection stays open: more than clients keep theirs (httpx and openai: 5), or one would be used
again as it is closed."""


def serve(params: Path, settings: Serving, announce: Callable[[str], None]) -> None:
    """Serve the model in `params`; `announce` is called with the URL once requests are taken."""
    asyncio.run(_serve(params, settings, announce))


async def _serve(params: Path, settings: Serving, announce: Callable[[str], None]) -> None:
    info = read_info(params)

    def build() -> engine.Engine:
        mesh = engine_mesh(settings.mesh.model_dump())
        config, weights = load_weights(params, mesh=mesh)
        if "weights" in settings.int8:
            weights = quantize_weights(weights)
        return engine.Engine(
            config, weights, slots=settings.slots, max_length=settings.max_length, real_vocab=info.real_vocab,
            top=settings.top_logprobs, sampled=settings.sampled_logits, mesh=mesh, int8_cache="cache" in settings.int8,
            own=True,
        )  # fmt: skip

    opened = _open(settings)
    worker = Worker(build, asyncio.get_running_loop())
    service = Service(info, load_tokenizer(params / "tokenizer", info), settings, worker)
    try:
        service.facts = facts(info, settings, (await worker.ready).kernels)
    except Failed as failure:
        raise DistillError(str(failure)) from None
    gc.freeze()  # what a start leaves is there for good: no need to go through it again and again
    gc.enable()
    worker.touched = time.monotonic()  # loading was no idleness
    server = uvicorn.Server(
        uvicorn.Config(
            service.app(),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=LINGER,
            timeout_keep_alive=KEEP_ALIVE,
        )
    )

    def leave() -> None:
        server.should_exit = True

    service.leave = leave
    watch = asyncio.ensure_future(_watch(worker, settings.idle_seconds, leave))
    host, port = opened.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    told = asyncio.ensure_future(_announce(server, lambda: announce(url)))
    await server.serve(sockets=[opened])
    watch.cancel()
    told.cancel()
    worker.stop()
    if worker.failure:
        raise DistillError(str(worker.failure))


def facts(info: ModelInfo, settings: Serving, kernels: str) -> dict[str, Any]:
    """What decides a sample's bytes here: a client compares it, and keeps what it gets under it.

    kernels: the engine's.
    """
    return {
        "teacher": info.digest,
        "tokenizer_hash": info.tokenizer_hash,
        "slots": settings.slots,
        "max_length": settings.max_length,
        "mesh": settings.mesh.model_dump(),
        "int8": sorted(settings.int8),
        "told": {"top": settings.top_logprobs, "sampled": settings.sampled_logits},
        "engine": _engine_code(),
        "kernels": kernels,
    }


def _engine_code() -> str:
    """The digest of the engine's code, remembered beside what is compiled of it."""
    script = Path(engine.__file__)
    try:
        return digests([script], cache_folder() / "code.json")[script.stem]
    except OSError:  # no such folder for this user
        return digest(script)


def _open(settings: Serving) -> socket.socket:
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=2048,
        )
    except OSError as error:
        raise DistillError(
            f"{settings.host}:{settings.port} cannot be opened ({error.strerror}): take another --port"
        ) from None


async def _announce(server: uvicorn.Server, announce: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    announce()


async def _watch(worker: Worker, idle_seconds: float, leave: Callable[[], None]) -> None:
    """Leave when nobody has asked for `idle_seconds`, or when the engine broke."""
    while True:
        idle = not worker.load and time.monotonic() - worker.touched > idle_seconds > 0
        if idle or worker.failure:
            return leave()
        await asyncio.sleep(min(1.0, max(idle_seconds, 1.0) / 10))
