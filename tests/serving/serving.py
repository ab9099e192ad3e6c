"""What the tests of serving share: a server's process, and a batch of prompts."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from distill.files import write_jsonl
from distill.text.chat import prompt_id, prompts_tokens
from distill.text.tokenizer import load_tokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Running:
    """A server that answers, and a client that knows its token."""

    url: str
    token: str
    process: subprocess.Popen
    client: httpx2.Client

    def post(self, path: str, **body: object) -> httpx2.Response:
        return self.client.post(path, json=body)

    def complete(self, **body: object) -> dict:
        response = self.post("/v1/completions", **body)
        assert response.status_code == 200, response.text
        return response.json()

    def gauge(self, name: str) -> float:
        return float(re.search(rf"^{name} (.*)$", self.client.get("/metrics").text, re.MULTILINE).group(1))


@contextmanager
def started(folder: Path, environment: dict[str, str], params: Path, **flags: object) -> Iterator[Running]:
    """`scripts/serve.py` with a token, on a free port."""
    token = folder / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    options = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, SCRIPTS / "serve.py", "--params", params, "--port", "0", "--token-file", token, *options],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip
    try:
        url = process.stdout.readline().strip()
        assert url, (folder / "log").read_text()
        headers = {"Authorization": "Bearer secret"}
        with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            yield Running(url, "secret", process, client)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def write_batch(params: Path, out: Path, count: int, start: int = 0) -> Path:
    """`count` prompts of a batch file, from number `start`."""
    tokenizer = load_tokenizer(params / "tokenizer")
    words = [f"say {LETTERS[i % 26]}{LETTERS[i // 26]}" for i in range(start, start + count)]
    turns = [[{"role": "user", "content": word}] for word in words]
    ids = prompts_tokens(tokenizer, turns, "tokenizer")
    write_jsonl(
        out,
        [
            {"prompt_id": prompt_id(m), "messages": m, "prompt_token_ids": t, "reference": None, "original": None}
            for m, t in zip(turns, ids, strict=True)
        ],
    )
    return out


def until(ready: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that must become so."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)
