"""A Hugging Face folder of Llama's family as float32 GGUF, which llama.cpp reads; token i is the word `i`.

    llamacpp/bin/python benchmarks/gguf_folder.py HF OUT

llama.cpp turns neighbours where transformers turns halves: the rows of queries and keys change places.
"""

import json
import sys
from pathlib import Path

from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map
from safetensors.numpy import load_file


def write(hf: Path, out: Path) -> None:
    config = json.loads((hf / "config.json").read_text())
    layers, heads, vocabulary = (config[k] for k in ("num_hidden_layers", "num_attention_heads", "vocab_size"))
    groups = {"q_proj": heads, "k_proj": config.get("num_key_value_heads", heads)}
    writer, names = GGUFWriter(out, "llama"), get_tensor_name_map(MODEL_ARCH.LLAMA, layers)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups["k_proj"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"▁{i}" for i in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([TokenType.NORMAL] * vocabulary)
    for shard in sorted(hf.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            if (split := groups.get(name.split(".")[-2])) is not None:
                tensor = tensor.reshape(split, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
            writer.add_tensor(names.get_name(name, (".weight",)), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
