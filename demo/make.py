"""Make the demo: a teacher that spells words backwards, a weak student, and prompts with a held-out part.

The words are WordNet's nouns (Debian: apt-get install wordnet-base; its licence permits use and copying
for any purpose). The two models are trained here, by the library that the pipeline uses; a run takes some
ten minutes on two cores. What it writes is committed, so nobody needs to run it.
"""

import random
import re
import shutil
from pathlib import Path

import click
import jax
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.checkpoints.convert import export_checkpoint, import_checkpoint
from distill.checkpoints.hf import their_tensors, write_shards
from distill.checkpoints.store import flat
from distill.config.stages import Stage
from distill.data.masking import training_examples
from distill.files import write_json, write_jsonl
from distill.models import decoder
from distill.models.families import config_from_hf, weight_rows
from distill.models.table import weights
from distill.parallel.runtime import start
from distill.text.tokenizer import load_tokenizer
from distill.training.loop import fit

PROMPTS, HELD_OUT, GOLD = 8000, 500, 500
LETTERS = (3, 12)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>"]
PIECES = ["Spell ", " backwards.", *"abcdefghijklmnopqrstuvwxyz", " ", "."]
SIZES = {
    "teacher": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4},
    "student": {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
TEACHER = Stage(
    init="-", steps=1000, batch_size=128, learning_rate=3e-3, warmup_steps=100, weight_decay=0.01, log_every=100
)
STUDENT = Stage(init="-", steps=300, batch_size=64, learning_rate=2e-3, warmup_steps=30, seed=1, log_every=100)
RUDE = re.compile(r"\b(slur|offensive|vulgar|obscene|derogatory|disparag\w*|slang|sexual\w*|genital\w*)\b")


@click.command(help=__doc__)
@click.option(
    "--wordnet", type=click.Path(path_type=Path, exists=True), default="/usr/share/wordnet", show_default=True,
    help="folder with WordNet's index.noun and data.noun",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent, help="where the demo goes")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="scratch folder")
def main(wordnet: Path, out: Path, work: Path) -> None:
    start()
    shown, rest = words(wordnet)
    held_out, gold, asked = np.split(np.asarray(shown), [HELD_OUT, HELD_OUT + GOLD])
    asked = [*asked, *rest][:PROMPTS]
    write_jsonl(out / "prompts.jsonl", [{"messages": [question(word)], "reference": word[::-1]} for word in asked])
    write_jsonl(out / "heldout.jsonl", [{"messages": [question(word)], "reference": word[::-1]} for word in held_out])
    seen = set(held_out)
    lessons = {"teacher": [w for w in [*shown, *rest] if w not in seen], "student": list(gold)}
    for name, stage in (("teacher", TEACHER), ("student", STUDENT)):
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        untrained(folder / "untrained", SIZES[name])
        import_checkpoint(folder / "untrained", folder / "start", dtype="float32", origin=f"demo {name}")
        tokenizer = load_tokenizer(folder / "start" / "tokenizer")
        answered = [[question(w), {"role": "assistant", "content": w[::-1]}] for w in lessons[name]]
        fit(folder / "start", training_examples(answered, tokenizer, "tokenizer", 64), folder, stage, name)
        export_checkpoint(folder / "params", out / name)


def words(wordnet: Path) -> tuple[list[str], list[str]]:
    """Nouns of a few letters in a fixed random order: those that occur in WordNet's corpora, and the others."""
    glosses = {}
    for line in (wordnet / "data.noun").read_text(encoding="utf-8").splitlines():
        if re.match(r"\d{8} ", line):
            glosses[line[:8]] = line.split("|", 1)[1]
    shown, rest = [], []
    for line in (wordnet / "index.noun").read_text(encoding="utf-8").splitlines():
        word, *fields = line.split()
        if not re.fullmatch(f"[a-z]{{{LETTERS[0]},{LETTERS[1]}}}", word) or word == word[::-1]:
            continue
        senses = [field for field in fields if re.fullmatch(r"\d{8}", field)]
        if any(RUDE.search(glosses[sense]) for sense in senses):
            continue
        tagged = int(fields[-len(senses) - 1])
        (shown if tagged else rest).append(word)
    order = random.Random(0)
    order.shuffle(shown)
    order.shuffle(rest)
    return shown, rest


def question(word: str) -> dict[str, str]:
    return {"role": "user", "content": f"Spell {word} backwards."}


def untrained(folder: Path, sizes: dict[str, int]) -> None:
    """A Hugging Face folder with random weights and the demo's tokenizer."""
    folder.mkdir(parents=True)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *PIECES])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    rules.pre_tokenizer = pre_tokenizers.Split(Regex(r"Spell | backwards\.|."), "isolated")
    rules.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|unknown|>",
        additional_special_tokens=SPECIAL[4:],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    hf = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40, **sizes,
        "num_key_value_heads": 2, "head_dim": sizes["hidden_size"] // 4, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "tie_word_embeddings": True, "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = config_from_hf(hf)
    tree = flat(decoder.init(config, jax.random.key(0)))
    table = weights(config, weight_rows(config), decoder.weight_axes(config))
    write_shards(folder, their_tensors(table, lambda weight: np.asarray(tree[weight.ours])))
    write_json(folder / "config.json", hf)


if __name__ == "__main__":
    main()
