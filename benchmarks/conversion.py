"""How long import and export take, against `cp` and `sync` of the same bytes, and how much memory.

    .venv/bin/python benchmarks/conversion.py            # 1 GB
    .venv/bin/python benchmarks/conversion.py --full     # Llama-2-7B's shape: 13.5 GB; wants 45 GB free

Both begin with an import of SmolLM2-135M's shape, 0.27 GB, which is a process's start more than anything else.
The checkpoint is random bfloat16 in shards of 2 GB. Each timed step is a process of its own, reads files that
are not in the page cache, and ends with `sync`. The exported folder is compared with the source byte by byte.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import click
import ml_dtypes
import numpy as np
from machine import footer, installed
from tokenizers import Tokenizer, models
from tqdm import tqdm

from distill.checkpoints.hf import plan_of, their_tensors, write_shards
from distill.files import write_json
from distill.models import decoder
from distill.models.families import config_from_hf, weight_rows
from distill.models.table import Weight, weights

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": False, "eos_token_id": 1,
}  # fmt: skip
# A process in between: a child starts with the peak of the process that made it, and this one's is high.
PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_hidden_layers": 8}


def make_source(folder: Path, shape: dict) -> int:
    """A Hugging Face folder of random weights; gives their bytes."""
    folder.mkdir(parents=True)
    config = config_from_hf(shape)
    table = list(weights(config, weight_rows(config), decoder.weight_axes(config)))
    random = np.random.default_rng(0)

    def draw(weight: Weight) -> np.ndarray:  # any bits, but the exponent's first: finite, under 2
        bits = random.integers(0, 1 << 16, weight.shape, np.uint16) & np.uint16(0xBFFF)
        return bits.view(ml_dtypes.bfloat16)

    plan = plan_of(table, np.dtype(ml_dtypes.bfloat16))
    write_shards(folder, tqdm(their_tensors(table, draw), "make", len(plan), unit=" tensors"), plan)
    write_json(folder / "config.json", shape)
    words = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 100)}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<eos>", "unk_token": "<unk>"})
    return sum(2 * prod(their_shape) for _, _, their_shape in plan)


def timed(source: Path, *command: str | Path) -> tuple[float, float]:
    """Seconds that a command with a `sync` takes, and the peak of its resident memory in GB."""
    os.sync()
    for file in filter(Path.is_file, source.rglob("*")):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    words = [str(part) for part in command]
    done = subprocess.run([sys.executable, "-c", PEAK, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    os.sync()
    return time.perf_counter() - start, float(done.stdout.splitlines()[-1]) / 1e6


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="13.5 GB in place of 1 GB")
@click.option("--work", type=click.Path(path_type=Path), default=tempfile.gettempdir(), show_default=True)
def main(full: bool, work: Path) -> None:
    free, need = shutil.disk_usage(work).free / 1e9, 45 if full else 4
    if free < need:
        raise click.ClickException(f"{work} has {free:.0f} GB free, {need} are needed: name another --work")
    folder = Path(tempfile.mkdtemp(prefix="conversion-", dir=work))
    source, copy, params, out = (folder / name for name in ("source", "copy", "params", "out"))
    os.environ |= {"JAX_PLATFORMS": "cpu", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    model = json.dumps({"source": "benchmark", "dtype": "bfloat16"})
    to_params = (SCRIPTS / "import_checkpoint.py", "--source", source, "--tokenizer", source, "--model", model,
                 "--out", params)  # fmt: skip
    to_folder = (SCRIPTS / "export_checkpoint.py", "--params", params, "--out", out)
    rows = []

    def row(name: str, size: int, read: Path, command: tuple) -> None:
        base, _ = timed(read, "cp", "-r", read, copy)
        shutil.rmtree(copy)
        took, memory = timed(read, sys.executable, *command)
        figures = f"{size / 1e9:.2f} GB | {base:.1f} s | {took:.1f} s | {took / base:.2f} | {memory:.2f} GB"
        rows.append(f"| {name} | {figures} |")

    try:
        row("import", make_source(source, LLAMA_2_7B | SMOLLM2), source, to_params)
        shutil.rmtree(source)
        size = make_source(source, LLAMA_2_7B if full else LLAMA_2_7B | SMALL)
        row("import", size, source, to_params)
        row("export", size, params, to_folder)
        changed = [file.name for file in source.glob("*.safetensors") if not same(file, out / file.name)]
    finally:
        shutil.rmtree(folder)
    packages = ("jax", "orbax-checkpoint", "tensorstore", "safetensors", "numpy")
    click.echo(footer(installed(*packages)))
    click.echo("\n| step | bfloat16 | cp + sync | step + sync | ratio | peak memory |\n|---|--:|--:|--:|--:|--:|")
    click.echo("\n".join(rows))
    click.echo(f"\nexport and source: {'bit-equal' if not changed else 'DIFFERENT: ' + ', '.join(changed)}")
    sys.exit(bool(changed))


def same(left: Path, right: Path) -> bool:
    return right.exists() and filecmp.cmp(left, right, shallow=False)


if __name__ == "__main__":
    main()
