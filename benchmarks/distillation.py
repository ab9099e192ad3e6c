"""A step of online distillation side by side: this project, a bare torch loop, TRL's GKDTrainer.

    python -m venv peers && peers/bin/pip install torch transformers trl
    .venv/bin/python benchmarks/distillation.py --peers peers/bin/python

Teacher B (110M parameters), student A (15M), vocabulary 32000, batch 8 × 256, float32, forward KL, AdamW, a clip of
the norm. All trainers are alive at the same time and take turns, a step each, so that what else the machine does
meets all alike; the ratios are medians of the rounds' own. Memory is the peak of a process, its libraries included.
Ours keeps the products with weights for the backward pass (`remat: dots`).
"""

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import click
from machine import footer
from side_by_side import SHAPES, Worker, make_model, rows

WORKER = Path(__file__).with_name("distillation_worker.py")


def against(trainer: Worker, step: str, other: str, rounds: int) -> float:
    """The time of our step as a multiple of that of another one of ours."""
    for name in (step, other):
        trainer.ask(name)  # compiled
    return median(trainer.ask(step)["wall"] / trainer.ask(other)["wall"] for _ in range(rounds))


@click.command(help=__doc__)
@click.option("--peers", help="python of an environment with torch, transformers and trl; ours alone without it")
@click.option("--rounds", default=7, show_default=True)
def main(peers: str | None, rounds: int) -> None:
    folder, versions = Path(tempfile.mkdtemp(prefix="distillation-")), {}
    try:
        for name, shape in SHAPES.items():
            make_model(folder / name, shape)
        pythons = {"ours": sys.executable} | (dict.fromkeys(("torch", "trl"), peers) if peers else {})
        trainers = [Worker(python, WORKER, kind, folder) for kind, python in pythons.items()]
        for trainer in trainers:
            versions |= trainer.versions
        click.echo("| trainer | tokens/s | ours × theirs, clock | the same, CPU time | peak memory | ours ÷ theirs |")
        click.echo("|---|--:|--:|--:|--:|--:|")
        for trainer, row in zip(trainers, rows(trainers, rounds), strict=True):
            memory = f"{trainers[0].peak / trainer.peak:.2f}" if trainer is not trainers[0] else ""
            click.echo(f"| {row} | {memory} |")
        teacher, shards = (against(trainers[0], *pair, rounds) for pair in (("step", "sft"), ("topk", "plain")))
        click.echo(f"\na step with the teacher takes {teacher:.2f} times one of plain SFT")
        click.echo(
            f"a step from stored top-32 logits, read from their file, has {1 / shards:.2f} of the speed of plain SFT"
        )
        for trainer in trainers:
            trainer.end()
    finally:
        shutil.rmtree(folder)
    click.echo(f"\n{footer(versions)}")


if __name__ == "__main__":
    main()
