"""Serve a model: OpenAI's completions and chat completions, for this machine unless --host says otherwise."""

import gc
import os

if __name__ == "__main__":
    gc.disable()  # to look for garbage among what is imported takes a sixth of the start; `serve` turns it on again
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # to look for these a hundredth, and there are none

import stat
from contextlib import nullcontext
from pathlib import Path

import click

from distill.config.generation import EngineMesh
from distill.errors import DistillError, explained
from distill.parallel.runtime import start
from distill.serving.run import serve
from distill.serving.server import Serving
from distill.serving.shared import living

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, required=True, help="params folder: a teacher's or a student's")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8000, show_default=True)
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True, help="sequences decoded together")
@click.option(
    "--max-length", type=click.IntRange(2), default=2048, show_default=True, help="prompt and answer, in tokens"
)
@click.option("--queue", type=click.IntRange(0), help="samples that may wait; 16 a slot by default")
@click.option("--data-parallelism", "data", type=click.IntRange(1), default=1, help="devices that share the slots")
@click.option("--expert-parallelism", "expert", type=click.IntRange(1), default=1, help="devices that share experts")
@click.option("--tensor-parallelism", "tensor", type=click.IntRange(1), default=1, help="devices that share each layer")
@click.option("--int8-weights", is_flag=True, help="keep the model's matrices in eight bits")
@click.option("--int8-cache", is_flag=True, help="keep keys and values in eight bits")
@click.option(
    "--top-logprobs", type=click.IntRange(0), default=0, show_default=True,
    help="alternatives that a request may ask for at each token",
)  # fmt: skip
@click.option(
    "--sampled-logits", type=click.IntRange(0), default=0, show_default=True,
    help="draws from the model's distribution that a request may ask for at each token",
)  # fmt: skip
@click.option("--token-file", type=PATH, help="file with the token that clients must know, readable by you only")
@click.option("--idle-seconds", type=float, default=0, help="leave after so long without a request; 0: stay")
@click.option("--shared", type=PATH, hidden=True, help="info file of the server that batch jobs share")
def main(params: Path, host: str, port: int, slots: int, max_length: int, queue: int | None, data: int, expert: int,
         tensor: int, int8_weights: bool, int8_cache: bool, top_logprobs: int, sampled_logits: int,
         token_file: Path | None, idle_seconds: float, shared: Path | None) -> None:  # fmt: skip
    with (
        explained(),
        living(shared) if shared else nullcontext((read_token(token_file), click.echo)) as (token, announce),
    ):
        start()
        port = 0 if shared else port
        queue = 16 * slots if queue is None else queue
        mesh = EngineMesh(data=data, expert=expert, tensor=tensor)
        int8 = tuple(what for what, asked in (("weights", int8_weights), ("cache", int8_cache)) if asked)
        told = top_logprobs, sampled_logits
        settings = Serving(slots, max_length, queue, host, port, token, idle_seconds, *told, int8, mesh)
        serve(params, settings, announce)


def read_token(file: Path | None) -> str | None:
    """The token in a file that nobody else can read."""
    if file is None:
        return None
    if not file.is_file() or not (token := file.read_text().strip()):
        raise DistillError(f"{file} holds no token: write one into it")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise DistillError(f"others can read {file}: chmod 600 it")
    return token


if __name__ == "__main__":
    main()
