"""A model at an OpenAI-compatible endpoint that scores answers: each is asked about once, and what it said is kept.

`{work}/{key}.jsonl` has a line a judgement; the key covers all that decides one. Nothing here is declared to
Snakemake, and all of it may be deleted.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2

from distill.config.dataset import Judge
from distill.errors import DistillError
from distill.files import digest
from distill.retries import is_transient, patiently, refusal, retry_after

KEY = "DISTILL_JUDGE_API_KEY"


class Trouble(Exception):
    """An attempt that failed; the next one may do better, after so many seconds where the server said so."""

    def __init__(self, reason: str, seconds: float | None = None):
        super().__init__(reason)
        self.seconds = seconds


class Judged:
    """Asks the judge, `concurrency` answers at a time."""

    def __init__(self, settings: Judge, work: Path):
        self.settings = settings
        decides = settings.model_dump(mode="json", exclude={"concurrency", "min_score"})
        self.file = work / f"{digest(decides)[:16]}.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.known = dict(_read(self.file))

    @cached_property
    def _template(self) -> Callable[..., str]:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        return ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(self.settings.prompt).render

    def scores(self, asked: Sequence[tuple[Sequence[Mapping[str, str]], str, str | None]]) -> list[float | None]:
        """The score of each (prompt's messages, completion, reference); None where the judge gives none.

        A judge that does not answer is a `DistillError`; what it has said by then is kept.
        """
        texts = [self._template(messages=list(m), completion=c, reference=r) for m, c, r in asked]
        names = [digest(text)[:32] for text in texts]
        missing = {name: text for name, text in zip(names, texts, strict=True) if name not in self.known}
        if missing:
            self._ask(missing)
        return [self.known[name] for name in names]

    def _ask(self, missing: dict[str, str]) -> None:
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
        most = self.settings.concurrency
        limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most)
        timeout = httpx2.Timeout(10, read=600, pool=None)
        out = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

        def ask(client: httpx2.Client, name: str, text: str) -> None:
            said = self._judgement(client, text)
            score = self._score(said)
            line = json.dumps({"of": name, "score": score, "said": said}, ensure_ascii=False)
            os.write(out, b"\n" + line.encode() + b"\n")  # a line that a kill tore stays alone
            self.known[name] = score

        try:
            with (
                httpx2.Client(headers=headers, limits=limits, timeout=timeout, trust_env=False) as client,
                ThreadPoolExecutor(most) as pool,
            ):
                asked = [pool.submit(ask, client, name, text) for name, text in missing.items()]
                try:
                    for one in asked:
                        one.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            os.close(out)

    def _judgement(self, client: httpx2.Client, text: str) -> str | None:
        """What the judge says; the last of `attempts` sayings where none has a score, None where it refuses."""
        said = None
        for _ in range(self.settings.attempts):
            said = self._patiently(client, text)
            if said is None or self._score(said) is not None:
                break
        return said

    def _score(self, said: str | None) -> float | None:
        """The number in the last line, if that line is as the rule has it and the number within its bounds."""
        lines = (said or "").strip().splitlines()
        found = re.fullmatch(self.settings.score, lines[-1].strip()) if lines else None
        try:
            score = float(found[1]) if found else None
        except (TypeError, ValueError):
            return None
        low, high = self.settings.bounds
        return score if score is not None and low <= score <= high else None

    def _patiently(self, client: httpx2.Client, text: str) -> str | None:
        retrying = patiently(lambda error: isinstance(error, Trouble), lambda trouble: trouble.seconds)
        try:
            return retrying(self._attempt, client, text)
        except Trouble as trouble:
            raise DistillError(
                f"judge {self.settings.model} at {self.settings.endpoint} gives no answer ({trouble}): run the same "
                "command again once it does, what it has said is kept"
            ) from None

    def _attempt(self, client: httpx2.Client, text: str) -> str | None:
        settings = self.settings
        body = {
            "model": settings.model, "messages": [{"role": "user", "content": text}],
            "temperature": settings.temperature, "max_tokens": settings.max_tokens,
        }  # fmt: skip
        where = f"judge at {settings.endpoint}"
        try:
            response = client.post(f"{settings.endpoint}/v1/chat/completions", json=body)
        except httpx2.TransportError as error:
            raise Trouble(f"{type(error).__name__} {error}".strip()) from None
        status = response.status_code
        if status in (401, 403):
            raise DistillError(f"{where} does not take our key ({refusal(response)}): set {KEY} to it")
        if status == 404:
            raise DistillError(f"{where} does not know model {settings.model}, or is none ({refusal(response)})")
        if is_transient(status):
            raise Trouble(refusal(response), retry_after(response.headers.get("Retry-After")))
        if status != 200:
            return None  # too long for it, or against its rules: this answer alone
        try:
            said = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Trouble(f"the answer is not OpenAI's ({type(error).__name__}: {error})") from None
        return said if isinstance(said, str) else ""


def _read(file: Path) -> list[tuple[str, float | None]]:
    """The judgements of a file; a torn line is none."""
    found: list[tuple[str, float | None]] = []
    if file.exists():
        for line in file.read_bytes().splitlines():
            try:
                values: dict[str, Any] = json.loads(line)
                found.append((values["of"], None if values["score"] is None else float(values["score"])))
            except (ValueError, TypeError, KeyError):
                continue
    return found
