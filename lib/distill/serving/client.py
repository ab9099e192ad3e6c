"""Asks a server for samples: many requests in flight, retried, each told as soon as it has ended. No JAX here."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from distill.config.generation import Sampling
from distill.errors import DistillError
from distill.retries import refusal, retry_after
from distill.serving.journal import Sample
from distill.serving.shared import Server

ATTEMPTS = 8
LONGEST_WAIT = 20  # seconds between two attempts
STARTS = 3  # servers that may die one after the other without an answer


@dataclass(frozen=True)
class Ask:
    """Samples `first` to `first + count - 1` of prompt `row`."""

    row: int
    prompt: list[int]
    seed: int
    first: int
    count: int
    max_tokens: int


@dataclass(frozen=True)
class Failure:
    """Why an ask has no answer after all attempts."""

    reason: str


class Trouble(Exception):
    """An attempt that failed; the next one may do better."""


class Refused(Exception):
    """The server will not answer this request, however often it is asked."""


@dataclass
class Door:
    """Where the server is now. `find` gives a server, a new one where the last has died.

    own: it is one of ours, which takes the extensions; `facts` is what it says of itself.
    """

    find: Callable[[], Server]
    own: bool
    facts: dict[str, Any]
    model: str | None = None
    server: Server | None = None
    deaths: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def current(self, dead: Server | None = None) -> Server:
        """The server; `dead` is the one that the caller found gone."""
        async with self.lock:
            if self.server is None or self.server == dead:
                self.deaths += dead is not None
                if self.deaths >= STARTS:
                    raise DistillError(f"the generation server died {self.deaths} times without an answer: see its log")
                self.server = await asyncio.to_thread(self.find)
            return self.server


def open_door(find: Callable[[], Server]) -> Door:
    """Find the server, and ask it what it is."""
    server = find()
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
    try:
        with httpx2.Client(trust_env=False, timeout=30, verify=_is_encrypted(server)) as client:
            response = client.get(f"{server.url}/v1/models", headers=headers)
        model = response.json()["data"][0] if response.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DistillError(f"{server.url} does not answer as OpenAI's servers do ({error}): check the URL") from None
    if model is None:
        raise DistillError(f"{server.url} refuses: {refusal(response)}; its key goes into DISTILL_API_KEY")
    facts = model.get("distill")
    return Door(find, facts is not None, facts or {}, model["id"], server)


def ask(
    door: Door, asks: Sequence[Ask], sampling: Sampling, stop_ids: Sequence[int], concurrency: int,
    answered: Callable[[Ask, list[Sample] | Failure], None], told: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Have every ask answered or given up, `concurrency` at a time; `answered` is told of each as it ends.

    told: logits of each kind that are asked for at each token; only a server of ours can tell them.
    """
    if not asks:
        return
    body = _body(door, sampling, stop_ids) | {f"{kind}_logits": k for kind, k in (told or {}).items() if k}

    async def worker(client: httpx2.AsyncClient, left: Iterator[Ask]) -> None:
        for one in left:
            answered(one, await _answer(client, door, one, body))

    async def all_of_them() -> None:
        left, door.lock = iter(asks), asyncio.Lock()  # of this event loop: a door is used again in another one
        async with _client(door, concurrency) as client, asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(asks))):
                group.create_task(worker(client, left))

    try:
        asyncio.run(all_of_them())
    except BaseExceptionGroup as errors:  # what one worker met ends them all: a full disk, a dead server
        raise errors.exceptions[0] from None


@asynccontextmanager
async def _client(door: Door, concurrency: int) -> AsyncIterator[httpx2.AsyncClient]:
    timeout = httpx2.Timeout(10, read=None, pool=None)  # an answer takes as long as its tokens
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx2.AsyncClient(
        limits=limits, timeout=timeout, trust_env=False, verify=_is_encrypted(door.server)
    ) as client:
        yield client


def _is_encrypted(server: Server) -> bool:
    """Whether certificates are needed: to load them takes longer than a request."""
    return server.url.startswith("https:")


async def _answer(client: httpx2.AsyncClient, door: Door, one: Ask, body: dict[str, Any]) -> list[Sample] | Failure:
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(Trouble), stop=stop_after_attempt(ATTEMPTS), reraise=True,
            wait=wait_random_exponential(0.2, LONGEST_WAIT),
        ):  # fmt: skip
            with attempt:
                return await _attempt(client, door, one, body)
    except (Trouble, Refused) as error:
        return Failure(str(error))
    raise AssertionError("a retry ends in an answer or an error")


async def _attempt(client: httpx2.AsyncClient, door: Door, one: Ask, body: dict[str, Any]) -> list[Sample]:
    """One attempt. A server that is full is waited for, one that is gone is found again: neither is the row's fault."""
    wanted = {"prompt": one.prompt, "max_tokens": one.max_tokens}
    if door.own:
        wanted |= {"seed": one.seed, "n": one.count, "first_choice": one.first}
    else:  # others draw the choices of a request as they like, and know seeds of 63 bits
        wanted |= {"seed": (one.seed + one.first) % 2**63}
    body = body | wanted
    server = await door.current()
    while True:
        headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
        try:
            response = await client.post(f"{server.url}/v1/completions", json=body, headers=headers)
        except httpx2.ConnectError as error:
            if not door.own:
                raise Trouble(f"{server.url} cannot be reached ({error})") from None
            server = await door.current(dead=server)
            continue
        except httpx2.TransportError as error:
            raise Trouble(f"the connection broke ({type(error).__name__} {error})".strip()) from None
        if response.status_code not in (429, 503):
            break
        asked = retry_after(response.headers.get("Retry-After"))
        await asyncio.sleep(min(max(1.0 if asked is None else asked, 0.1), LONGEST_WAIT))
    if response.status_code in (401, 403):
        raise DistillError(
            f"{server.url} does not take our token ({refusal(response)}): set DISTILL_API_KEY to its key"
        )
    if response.status_code >= 500 or response.status_code == 408:
        raise Trouble(refusal(response))
    if response.status_code != 200:
        raise Refused(refusal(response))
    door.deaths = 0
    return _samples(response, body)


def _samples(response: httpx2.Response, body: dict[str, Any]) -> list[Sample]:
    try:
        choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
        samples = [
            Sample(
                choice["text"], choice["finish_reason"], choice.get("token_ids"),
                (choice.get("logprobs") or {}).get("token_logprobs"), choice.get("logits"),
            )
            for choice in choices
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Trouble(f"the answer is not OpenAI's ({type(error).__name__}: {error})") from None
    if len(samples) != body.get("n", 1):
        raise Trouble(f"{len(samples)} choices came, {body.get('n', 1)} were asked for")
    if odd := {sample.finish_reason for sample in samples} - {"stop", "length"}:
        raise Refused(f"a choice ended for {', '.join(map(str, odd))}")
    return samples


def _body(door: Door, sampling: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """What all requests of a batch share."""
    greedy = sampling.strategy == "greedy"
    body = {"temperature": 0.0 if greedy else sampling.temperature, "logprobs": 0, "return_token_ids": True}
    body |= {"top_p": sampling.top_p} if sampling.top_p else {}
    body |= {"top_k": sampling.top_k} if sampling.top_k else {}
    body |= {"stop_token_ids": list(stop_ids)} if stop_ids else {}
    return body | ({"model": door.model} if door.model else {})


def api_key() -> str:
    """The token of a server that somebody else started: never in a recipe."""
    return os.environ.get("DISTILL_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
