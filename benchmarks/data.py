"""How long the data takes that is prepared once for a run, and how much memory.

    .venv/bin/python benchmarks/data.py                     # a tenth: 20,000 conversations, 40,960 samples
    .venv/bin/python benchmarks/data.py --full              # 200,000 conversations, 409,600 samples; wants 6 GB free
    .venv/bin/python benchmarks/data.py --full --only reference

prompts: a dataset of UltraChat's shape (some turns, a few thousand characters of words with Zipf's frequencies), read
and tokenized by scripts/index_prompts.py with a byte-level BPE of 32,000 tokens; `reference` has the settings of
recipes/deepseek2-16b-to-llama2-7b.yaml, which asks the first turn of each conversation; `last` asks the last one with
all that came before it, `each_own` all of them; `similar` also looks for near duplicates; `long` are a tenth as many of
8 to 16 rounds. The bound is 3,000 conversations a second of a core, of UltraChat's length.
assembly: completions files of 2,048 samples, of 3.7 kB each on the disk, by scripts/build_dataset.py.
publish: nothing is sent, this is the hashing of the assembled dataset by SHA-256, SHA-1 and MD5.

Each step is a process of its own. Seconds are of the clock and, behind them, of the processor.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import footer, installed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from distill.config.reading import read_recipe
from distill.data.schema import COMPLETIONS, CompletionsMetadata
from distill.files import write_json
from distill.publishing.contents import contents

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
REFERENCE = ROOT / "recipes/deepseek2-16b-to-llama2-7b.yaml"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A process in between: a child starts with the peak of the process that made it, and this one's is high.
MEASURE = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_maxrss, used.ru_utime + used.ru_stime)"
)
SAMPLES = 2048  # in a batch: 1,024 prompts, two samples each
TOKENS = 400  # of a completion


class Words:
    """Text of pseudo-words with Zipf's frequencies; compresses as English does, about three to one."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        lengths = self.random.integers(2, 11, 50_000)
        self.words = np.array(["".join(self.random.choice(letters, length)) for length in lengths], object)

    def text(self, characters: int) -> str:
        """About that long."""
        ranks = self.random.zipf(1.25, characters // 5) % len(self.words)
        return " ".join(self.words[ranks])[:characters]


def make_tokenizer(folder: Path, words: Words) -> None:
    """`teacher`/tokenizer and model.json, which is all that prompts ask of a teacher."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=32_000, special_tokens=control, initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator((words.text(5000) for _ in range(400)), trainer)
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
    write_json(folder / "tokenizer/tokenizer_config.json", {"eos_token": "<|im_end|>", "chat_template": CHAT})
    write_json(folder / "model.json", {"architecture": {"max_positions": 32768}})


def make_conversations(path: Path, words: Words, count: int, rounds: tuple[int, int]) -> None:
    """JSON lines with `messages`: so many rounds, questions of 20 to 400 characters, answers of 200 to 2,000."""
    random = words.random
    pool = words.text(2_000_000)
    with path.open("w", encoding="utf-8") as file:
        for _ in tqdm(range(count), "conversations"):
            messages = []
            for _ in range(random.integers(*rounds, endpoint=True)):
                for role, low, high in (("user", 20, 400), ("assistant", 200, 2000)):
                    start, length = random.integers(0, len(pool) - 2000), random.integers(low, high)
                    messages.append({"role": role, "content": pool[start : start + length]})
            file.write(json.dumps({"messages": messages}) + "\n")


def make_completions(folder: Path, words: Words, batches: int) -> tuple[Path, int]:
    """Files of `batches`, and their index; one batch's rows under new names in each."""
    random = words.random
    rows = []
    for i in range(SAMPLES):
        prompt = [{"role": "user", "content": words.text(300)}]
        completion = [{"role": "assistant", "content": words.text(1500)}]
        rows.append({
            "prompt_id": "", "sample": i % 2, "prompt": prompt, "completion": completion,
            "messages": prompt + completion, "prompt_token_ids": random.integers(0, 32000, 80).tolist(),
            "completion_token_ids": (random.zipf(1.3, TOKENS) % 32000).tolist(),
            "logprobs": (-random.exponential(1, TOKENS)).tolist(), "finish_reason": "stop", "reference": None,
        })  # fmt: skip
    metadata = CompletionsMetadata("ab" * 32, "cd" * 32, {"num_generations": 2}, 0)
    table = pa.Table.from_pylist(rows, schema=COMPLETIONS.with_metadata(metadata.encode()))
    folder.mkdir()
    size, known = 0, {}
    for batch in tqdm(range(batches), "completions"):
        name = f"{batch:04d}"
        ids = pa.array([f"{batch:08x}{i // 2:08x}" for i in range(SAMPLES)])
        pq.write_table(table.set_column(0, COMPLETIONS.field(0), ids), folder / f"{name}.parquet",
                       compression="zstd", write_page_checksum=True)  # fmt: skip
        size += (folder / f"{name}.parquet").stat().st_size
        known[name] = {"hash": "", "read": SAMPLES // 2, "kept": SAMPLES // 2, "dropped": {}}
    index = folder.with_suffix(".json")
    write_json(index, {"schema": 1, "source": {"source": "benchmark"}, "batches": known})
    return index, size


def measured(*command: object) -> tuple[float, float, float]:
    """Seconds of the clock, of the processor, and the peak of resident memory in GB."""
    start = time.perf_counter()
    words = [sys.executable, *map(str, command)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    memory, used = done.stdout.split()[-2:]
    return time.perf_counter() - start, float(used), float(memory) / 1e6


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="200,000 conversations and 409,600 samples in place of a tenth")
@click.option("--only", type=click.Choice(["reference", "prompts", "dataset"]), help="one part alone")
@click.option("--work", type=click.Path(path_type=Path), default=tempfile.gettempdir(), show_default=True)
def main(full: bool, only: str | None, work: Path) -> None:
    free, need = shutil.disk_usage(work).free / 1e9, 6 if full else 1
    if free < need:
        raise click.ClickException(f"{work} has {free:.0f} GB free, {need} are needed: name another --work")
    folder, words = Path(tempfile.mkdtemp(prefix="data-", dir=work)), Words(0)
    conversations, batches = (200_000, 200) if full else (20_000, 20)
    rows = []

    def row(step: str, of: str, seconds: float, used: float, memory: float, rate: str) -> None:
        rows.append(f"| {step} | {of} | {seconds:.1f} s ({used:.1f} s) | {rate} | {memory:.2f} GB |")

    def prompts(name: str, settings: dict, longest: int = 1024, rounds: tuple[int, int] = (1, 4)) -> None:
        chats = folder / f"chats-{rounds[1]}.jsonl"
        count = conversations if rounds == (1, 4) else conversations // 10
        if not (folder / "teacher").exists():
            make_tokenizer(folder / "teacher", words)
        if not chats.exists():
            make_conversations(chats, words, count, rounds)
        asked = json.dumps(settings | {"source": str(chats)})
        found = measured(
            SCRIPTS / "index_prompts.py", "--teacher", folder / "teacher", "--prompts", asked,
            "--max-prefill-length", longest, "--work", folder / "prompts", "--out", folder / "index.json",
        )  # fmt: skip
        of = f"{count:,}, {chats.stat().st_size / 1e6:,.0f} MB"
        row(f"prompts, {name}", of, *found, f"{count / found[1]:,.0f} a second of a core")

    def dataset() -> None:
        index, size = make_completions(folder / "completions", words, batches)
        quality = {"quality": {"refusal": True, "repetition": 0.5, "min_logprob": -5}, "held_out": 0.01}
        for name, settings in (("assembly", {}), ("assembly, filtered", quality | {"provenance": True})):
            found = measured(
                SCRIPTS / "build_dataset.py", "--completions", folder / "completions", "--index", index,
                "--dataset", json.dumps(settings), "--num-generations", 2, "--run", "benchmark",
                "--teacher", '{"source": "benchmark"}', "--teacher-params", folder / "params",
                "--teacher-source", folder, "--out", folder / "dataset",
            )  # fmt: skip
            of = f"{batches * SAMPLES:,} samples, {size / 1e9:.2f} GB"
            row(name, of, *found, f"{batches * SAMPLES / found[0]:,.0f} a second")
        start = time.perf_counter()
        total = sum(file.size for file in contents(folder / "dataset"))
        seconds = time.perf_counter() - start
        row("publish: hash", f"{total / 1e9:.2f} GB", seconds, seconds, 0, f"{total / seconds / 1e6:,.0f} MB a second")

    try:
        if only in (None, "reference"):
            recipe = read_recipe(REFERENCE)
            settings = recipe.prompts.model_dump(exclude_defaults=True) | {"num_batches": "all"}
            of_the_hub = {"revision", "split"}
            settings = {key: value for key, value in settings.items() if key not in of_the_hub}
            prompts("reference", settings, recipe.generation.max_prefill_length)
        if only in (None, "prompts"):
            prompts("first, similar", {"turns": "first", "duplicates": "similar"})
            prompts("last", {"turns": "last"})
            prompts("each_own", {"turns": "each_own"})
            prompts("last, long", {"turns": "last"}, 16384, (8, 16))
        for chats in folder.glob("chats-*.jsonl"):
            chats.unlink()
        if only in (None, "dataset"):
            dataset()
    finally:
        shutil.rmtree(folder)
    packages = ("pyarrow", "tokenizers", "fastokens", "transformers", "numpy", "rensa")
    click.echo(footer(installed(*packages)))
    click.echo("\n| step | of | clock (processor) | rate | peak memory |\n|---|--:|--:|--:|--:|")
    click.echo("\n".join(rows))


if __name__ == "__main__":
    main()
