"""Tiny Hugging Face folders for tests: random weights, a character tokenizer, a chat template."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.checkpoints.hf import their_tensors, write_shards
from distill.checkpoints.store import flat
from distill.files import write_json
from distill.models import decoder
from distill.models.families import config_from_hf, weight_rows
from distill.models.table import weights

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .?"


def tiny_tokenizer(folder: Path, **special: str) -> PreTrainedTokenizerFast:
    """A character tokenizer with a chat template; `special` overrides its special tokens."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    rules.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        **{"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"} | special,
        additional_special_tokens=SPECIAL[3:],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_config(**changes: Any) -> dict[str, Any]:
    """`config.json` of a Llama small enough to compile in a second."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "hidden_act": "silu",
        "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
    } | changes  # fmt: skip


def tiny_llama(folder: Path, *, seed: int = 0, shard_bytes: int = 2_000_000_000, **changes: Any) -> Path:
    """A Hugging Face folder with random weights; `changes` go into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    values = tiny_config(**changes)
    config = config_from_hf(values)
    tree = flat(decoder.init(config, jax.random.key(seed)))
    table = weights(config, weight_rows(config), decoder.weight_axes(config))
    tensors = their_tensors(table, lambda w: np.asarray(tree[w.ours]))
    write_shards(folder, tensors, shard_bytes=shard_bytes)
    write_json(folder / "config.json", values)
    tiny_tokenizer(folder)
    return folder
