"""A training step side by side: this project, a bare torch loop, TRL's SFTTrainer; and packed rows against padded.

    python -m venv peers && peers/bin/pip install torch transformers trl
    .venv/bin/python benchmarks/training.py --peers peers/bin/python

Models A (15M parameters) and B (110M), batch 8 × 256, float32, AdamW, a clip of the norm. All trainers are alive at
the same time and take turns, a step each, so that what else the machine does meets all alike; the ratios are medians
of the rounds' own. Memory is the peak of a process, its libraries included. Ours keeps the products with weights for
the backward pass (`remat: dots`).
"""

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import click
from machine import footer
from side_by_side import SHAPES, Worker, make_model, rows

WORKER = Path(__file__).with_name("training_worker.py")


def packed_against_padded(trainer: Worker, rounds: int) -> str:
    found = [[trainer.ask(name) for name in ("packed", "padded")] for _ in range(rounds)]
    packed, padded = (median(row[i]["tokens"] / row[i]["wall"] for row in found) for i in range(2))
    gain = median((row[0]["tokens"] / row[0]["wall"]) / (row[1]["tokens"] / row[1]["wall"]) for row in found)
    fill, loose = (sum(row[i]["tokens"] for row in found) / (rounds * 8 * 256) for i in range(2))
    return f"| {packed:.0f} | {padded:.0f} | {gain:.2f} | {fill:.3f} | {loose:.3f} |"


@click.command(help=__doc__)
@click.option("--peers", required=True, help="python of an environment with torch, transformers and trl")
@click.option("--model", "names", type=click.Choice(list(SHAPES)), multiple=True, default=list(SHAPES))
@click.option("--rounds", default=7, show_default=True, help="of A; half as many of B")
def main(peers: str, names: tuple[str, ...], rounds: int) -> None:
    folder, versions = Path(tempfile.mkdtemp(prefix="training-")), {}
    click.echo("| model | trainer | tokens/s | ours × theirs, clock | the same, CPU time | peak memory |")
    click.echo("|---|---|--:|--:|--:|--:|")
    try:
        for name in names:
            make_model(folder / name, SHAPES[name])
            kinds = {"A": ["ours", "torch", "trl"], "B": ["ours", "torch"]}[name]
            pythons = {kind: sys.executable if kind == "ours" else peers for kind in kinds}
            trainers = [Worker(python, WORKER, kind, folder / name) for kind, python in pythons.items()]
            for trainer in trainers:
                versions |= trainer.versions
            for row in rows(trainers, rounds if name == "A" else -(-rounds // 2)):
                click.echo(f"| {name} | {row} |")
            if name == "A":
                mix = packed_against_padded(trainers[0], rounds)
                click.echo("\n| packed: useful tokens/s | padded | ratio | fill packed | padded |")
                click.echo(f"|--:|--:|--:|--:|--:|\n{mix}\n")
            saving = median(trainers[0].ask("save")["wall"] for _ in range(3))
            click.echo(f"saving {name} holds a step up for {saving:.2f} s")
            for trainer in trainers:
                trainer.end()
    finally:
        shutil.rmtree(folder)
    click.echo(f"\n{footer(versions)}")


if __name__ == "__main__":
    main()
