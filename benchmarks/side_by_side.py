"""What the side-by-side benchmarks share: models A and B, and worker processes that take turns."""

import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import jax
import numpy as np
from tokenizers import Tokenizer, models

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.hf import their_tensors, write_shards
from distill.checkpoints.store import flat
from distill.files import write_json
from distill.models import decoder
from distill.models.families import config_from_hf, weight_rows
from distill.models.table import weights

SHAPES = {
    "A": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
SHARED = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 2,
    "bos_token_id": 1,
}  # fmt: skip


class Worker:
    """A process that does as it is told, a line at a time, and answers with JSON."""

    def __init__(self, python: str, script: Path, kind: str, folder: Path, *arguments: object):
        self.kind, self.log = kind, folder / f"{kind}.log"
        self.process = subprocess.Popen(
            [python, str(script), kind, str(folder), *map(str, arguments)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, stderr=self.log.open("w"),
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        self.peak = 0.0
        self.versions = self._answer()["versions"]

    def ask(self, what: str) -> dict[str, float]:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.kind} ended:\n{self.log.read_text()[-2000:]}")
        found = json.loads(line)
        self.peak = found["peak"]
        return found


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """Random float32 weights as a Hugging Face folder and as a params folder; token i is the word `i`."""
    (folder / "hf").mkdir(parents=True)
    config = config_from_hf(SHARED | shape)
    tree = flat(decoder.init(config, jax.random.key(0)))
    table = list(weights(config, weight_rows(config), decoder.weight_axes(config)))
    write_shards(folder / "hf", their_tensors(table, lambda weight: np.asarray(tree[weight.ours])))
    write_json(folder / "hf/config.json", SHARED | shape)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {str(i): i for i in range(3, SHARED["vocab_size"])}
    rules = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    rules.add_special_tokens(list(special.values()))
    rules.save(str(folder / "hf/tokenizer.json"))
    write_json(folder / "hf/tokenizer_config.json", special | {"tokenizer_class": "PreTrainedTokenizerFast"})
    import_checkpoint(folder / "hf", folder / "params", dtype="float32", origin="benchmark")


def make_prompts(folder: Path) -> list[list[int]]:
    """64 prompts of 16 to 64 tokens, kept as prompts.json."""
    random = np.random.default_rng(0)
    prompts = [random.integers(3, SHARED["vocab_size"], length).tolist() for length in random.integers(16, 65, 64)]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return prompts


def _rested(worker: Worker) -> Worker:
    """OpenMP's threads spin for 0.2 s behind their work: they must not do so in another's turn."""
    time.sleep(0.5)
    return worker


def take_turns(workers: list[Worker], rounds: int, what: str) -> list[dict[str, float]]:
    """Tokens a second of each worker, and the first one's speed as a multiple of its (medians of the rounds' own).

    All are alive at the same time and take turns, so that what else the machine does meets all alike.
    """
    for worker in workers:
        worker.ask(what)
    found = [[_rested(worker).ask(what) for worker in workers] for _ in range(rounds)]
    speeds = [[one["tokens"] / one["wall"] for one in row] for row in found]
    work = [[one["tokens"] / one["cpu"] for one in row] for row in found]
    return [
        {
            "speed": median(row[i] for row in speeds),
            "clock": median(row[0] / row[i] for row in speeds),
            "cpu": median(row[0] / row[i] for row in work),
        }
        for i in range(len(workers))
    ]


def rows(trainers: list[Worker], rounds: int) -> list[str]:
    """Of a table of trainers: tokens a second, our speed as a multiple of theirs, and memory."""
    out = []
    for i, (trainer, found) in enumerate(zip(trainers, take_turns(trainers, rounds, "step"), strict=True)):
        ratios = f"{found['clock']:.2f} | {found['cpu']:.2f}" if i else " | "
        out.append(f"{trainer.kind} | {found['speed']:.0f} | {ratios} | {trainer.peak:.2f} GB")
    return out
