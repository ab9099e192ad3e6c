"""What stands around the engine costs: a server's start, HTTP, and the pipeline's job for a batch.

    .venv/bin/python benchmarks/serving.py

Model A of generation.py (15M parameters, random), 64 slots, its 64 prompts with 128 new tokens each. The first start
compiles and is not counted. Through HTTP eight clients ask, each with all its requests in flight, taking turns with the
engine alone in another process. A batch's job (scripts/generate.py) has 8 prompts of 184 tokens and 8 new tokens each;
the same requests from a client that is there already take turns with it.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import httpx2
import numpy as np
from generation_worker import NEW_TOKENS, VOCABULARY
from machine import footer, installed
from side_by_side import SHAPES, Worker, make_model, make_prompts

from distill.config.generation import Generation
from distill.files import write_jsonl

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parent / "scripts"
SLOTS, LENGTH, CLIENTS = 64, 192, 8
SHORT = 8  # prompts of a batch, and new tokens of each


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server of ours, by its URL."""
    command = [sys.executable, SCRIPTS / "serve.py", "--params", folder / "params", "--port", 0]
    command += ["--slots", SLOTS, "--max-length", LENGTH]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def client(url: str) -> Iterator[Callable[[list[int], int, int], int]]:
    """Asks for an answer to a prompt, with a seed and so many tokens; gives how many came."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)  # one for each request, and kept
    with httpx2.Client(base_url=url, timeout=None, trust_env=False, limits=limits) as http:

        def asked(prompt: list[int], seed: int, tokens: int) -> int:
            body = {"prompt": prompt, "max_tokens": tokens, "seed": seed, "ignore_eos": True, "return_token_ids": True}
            return len(http.post("/v1/completions", json=body).json()["choices"][0]["token_ids"])

        yield asked


def starts(folder: Path, prompt: list[int], rounds: int) -> list[tuple[float, float]]:
    """Seconds from a server's start to its URL, and to the answer of one token."""
    found = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        with server(folder) as url, client(url) as asked:
            told = time.perf_counter() - begun
            asked(prompt, 0, 1)
            found.append((told, time.perf_counter() - begun))
    return found[1:]


def through_http(url: str, worker: Worker, prompts: list[list[int]], rounds: int) -> list[tuple[float, float]]:
    """New tokens/s of eight clients, and of the engine alone."""
    with client(url) as asked:

        def one(i: int) -> int:
            return asked(prompts[i], i, NEW_TOKENS)

        def in_flight(part: range) -> int:
            with ThreadPoolExecutor(len(part)) as pool:
                return sum(pool.map(one, part))

        def all_of_them() -> float:
            start = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                tokens = sum(pool.map(in_flight, [range(i, len(prompts), CLIENTS) for i in range(CLIENTS)]))
            return tokens / (time.perf_counter() - start)

        def alone() -> float:
            told = worker.ask("run")
            return told["tokens"] / told["wall"]

        all_of_them(), alone()
        return [(all_of_them(), alone()) for _ in range(rounds)]


class Batch:
    """A batch's job, to be run again and again."""

    def __init__(self, folder: Path):
        random = np.random.default_rng(1)
        self.folder = folder
        self.prompts = [random.integers(3, VOCABULARY, LENGTH - SHORT).tolist() for _ in range(SHORT)]
        said = [{"role": "user", "content": "-"}]
        rows = [
            {"prompt_id": str(i), "messages": said, "prompt_token_ids": ids, "reference": None, "original": None}
            for i, ids in enumerate(self.prompts)
        ]
        write_jsonl(folder / "0000.jsonl", rows)

    def start(self, url: str) -> subprocess.Popen:
        """The job, with nothing known from before."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        settings = Generation(
            max_prefill_length=LENGTH - SHORT, max_target_length=LENGTH, slots=SLOTS, endpoint=f"{url}/v1"
        )
        command = [sys.executable, SCRIPTS / "generate.py", "--teacher", self.folder / "params"]
        command += ["--prompts", self.folder / "0000.jsonl", "--work", self.folder / "work"]
        command += ["--generation", settings.model_dump_json(exclude_defaults=True), "--out", self.folder / "0.parquet"]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def overhead(self, url: str, rounds: int) -> list[tuple[float, float]]:
        """Seconds of the job, and of its requests alone."""
        found = []
        with client(url) as asked, ThreadPoolExecutor(SHORT) as pool:
            for _ in range(rounds + 1):
                begun = time.perf_counter()
                if self.start(url).wait() != 0:
                    raise click.ClickException("the batch's job failed")
                between = time.perf_counter()
                list(pool.map(asked, self.prompts, range(SHORT), [SHORT] * SHORT))
                found.append((between - begun, time.perf_counter() - between))
        return found[1:]

    def first_request(self, rounds: int) -> list[float]:
        """Seconds from the job's start to its first connection."""
        found = []
        for _ in range(rounds):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                begun = time.perf_counter()
                job = self.start(f"http://127.0.0.1:{listener.getsockname()[1]}")
                listener.accept()[0].close()
                found.append(time.perf_counter() - begun)
                job.kill()
                job.wait()
        return found


def row(name: str, values: list[float], unit: str = " s") -> str:
    form = "{:.2f}" if max(values) < 100 else "{:.0f}"
    least, middle, most = (form.format(value) for value in (min(values), median(values), max(values)))
    return f"| {name} | {middle}{unit} | {least} to {most} |"


@click.command(help=__doc__)
@click.option("--rounds", default=10, show_default=True)
def main(rounds: int) -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, each start would compile the project's modules anew
    folder = Path(tempfile.mkdtemp(prefix="serving-"))
    try:
        made = folder / "A"
        make_model(made, SHAPES["A"])
        prompts, batch = make_prompts(made), Batch(made)
        worker = Worker(sys.executable, HERE / "generation_worker.py", "ours", made, SLOTS)
        begun = starts(made, prompts[0], rounds)
        with server(made) as url:
            speeds = through_http(url, worker, prompts, rounds)
            jobs = batch.overhead(url, rounds)
        first = batch.first_request(rounds)
        versions = worker.versions | installed("httpx2", "starlette", "uvicorn")
        worker.end()
    finally:
        shutil.rmtree(folder)
    click.echo("| | median | of all rounds |\n|---|--:|--:|")
    click.echo(row("a server's start to its URL, compiled before", [told for told, _ in begun]))
    click.echo(row("a server's start to its first token", [answered for _, answered in begun]))
    click.echo(row("through HTTP, 8 clients", [http for http, _ in speeds], " tokens/s"))
    click.echo(row("the engine alone", [alone for _, alone in speeds], " tokens/s"))
    click.echo(row("ratio of these", [http / alone for http, alone in speeds], ""))
    click.echo(row("a batch's job, start to first request", first))
    click.echo(row("a batch's job, the server warm, beyond its requests", [job - asked for job, asked in jobs]))
    click.echo(f"\n{footer(versions)}")


if __name__ == "__main__":
    main()
