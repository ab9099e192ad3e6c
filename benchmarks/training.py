"""A training step side by side: this project, a bare torch loop, TRL's SFTTrainer; and packed rows against padded.

    python -m venv peers && peers/bin/pip install torch transformers trl
    .venv/bin/python benchmarks/training.py --peers peers/bin/python

Models A (15M parameters) and B (110M), batch 8 × 256, float32, AdamW, a clip of the norm. All trainers are alive at
the same time and take turns, a step each, so that what else the machine does meets all alike; the ratios are medians
of the rounds' own. Memory is the peak of a process, its libraries included. Ours keeps the products with weights for
the backward pass (`remat: dots`).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import click
import jax
import numpy as np
from conversion import processor
from tokenizers import Tokenizer, models

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.hf import their_tensors, write_shards
from distill.checkpoints.store import flat
from distill.files import write_json
from distill.models import decoder
from distill.models.families import config_from_hf, weight_rows
from distill.models.table import weights

WORKER = Path(__file__).with_name("training_worker.py")
SHAPES = {
    "A": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
SHARED = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 2,
    "bos_token_id": 1,
}  # fmt: skip


class Trainer:
    """A worker process that does as it is told, a line at a time."""

    def __init__(self, python: str, kind: str, folder: Path):
        self.process = subprocess.Popen(
            [python, str(WORKER), kind, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=(folder / f"{kind}.log").open("w"), env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        self.kind, self.log, self.peak = kind, folder / f"{kind}.log", 0.0
        self.versions = self._answer()["versions"]

    def ask(self, what: str = "step") -> dict[str, float]:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.kind} ended:\n{self.log.read_text()[-2000:]}")
        found = json.loads(line)
        self.peak = found["peak"]
        return found

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


def make_model(folder: Path, shape: dict) -> None:
    """Random float32 weights as a Hugging Face folder and as a params folder."""
    (folder / "hf").mkdir(parents=True)
    config = config_from_hf(SHARED | shape)
    tree = flat(decoder.init(config, jax.random.key(0)))
    table = list(weights(config, weight_rows(config), decoder.weight_axes(config)))
    write_shards(folder / "hf", their_tensors(table, lambda weight: np.asarray(tree[weight.ours])))
    write_json(folder / "hf/config.json", SHARED | shape)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "hf/tokenizer.json"))
    write_json(folder / "hf/tokenizer_config.json", {"eos_token": "</s>", "unk_token": "<unk>"})
    import_checkpoint(folder / "hf", folder / "params", dtype="float32", origin="benchmark")


def side_by_side(trainers: list[Trainer], rounds: int) -> list[str]:
    """Rows of the table: tokens a second, and our speed as a multiple of theirs."""
    for trainer in trainers:
        trainer.ask()
    found = [[trainer.ask() for trainer in trainers] for _ in range(rounds)]
    rows = []
    for i, trainer in enumerate(trainers):
        speed = median(row[i]["tokens"] / row[i]["wall"] for row in found)
        ratios = [f"{median(row[i][clock] / row[0][clock] for row in found):.2f}" for clock in ("wall", "cpu")]
        ratios = ratios if i else ["", ""]
        rows.append(f"{trainer.kind} | {speed:.0f} | {ratios[0]} | {ratios[1]} | {trainer.peak:.2f} GB")
    return rows


def packed_against_padded(trainer: Trainer, rounds: int) -> str:
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
    folder, versions = Path(tempfile.mkdtemp(prefix="training-")), set()
    click.echo("| model | trainer | tokens/s | ours × theirs, clock | the same, CPU time | peak memory |")
    click.echo("|---|---|--:|--:|--:|--:|")
    try:
        for name in names:
            make_model(folder / name, SHAPES[name])
            kinds = {"A": ["ours", "torch", "trl"], "B": ["ours", "torch"]}[name]
            trainers = [Trainer(sys.executable if kind == "ours" else peers, kind, folder / name) for kind in kinds]
            versions |= {trainer.versions for trainer in trainers}
            for row in side_by_side(trainers, rounds if name == "A" else -(-rounds // 2)):
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
    click.echo(f"\n{os.cpu_count()} × {processor()}, {platform.platform()}, load {os.getloadavg()[1]:.1f}")
    click.echo(f"Python {platform.python_version()}, {', '.join(sorted(versions))}")


if __name__ == "__main__":
    main()
