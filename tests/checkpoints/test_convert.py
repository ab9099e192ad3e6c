"""Import and export: every bit comes back, a few tensors are held at a time, each device reads its part."""

import json
import os
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints.folders import TYPES, any_bits, bits, golden, rewrite, tensors
from golden.families import FAMILIES
from tiny_models import TEMPLATE, tiny_config, tiny_llama
from transformers import AutoConfig, AutoTokenizer

from distill.checkpoints import convert, source, store
from distill.checkpoints.convert import export_checkpoint, import_checkpoint, load_checkpoint
from distill.checkpoints.info import read_info
from distill.checkpoints.store import flat, load_weights, tree_digest
from distill.errors import DistillError
from distill.files import read_json, write_json
from distill.parallel.mesh import make_mesh


def imported(folder: Path, out: Path, dtype: str = "float32") -> Path:
    import_checkpoint(folder, out, dtype=dtype, origin="origin/model")
    return out


def raw(tree: dict) -> dict[str, bytes]:
    return {path: np.asarray(value).tobytes() for path, value in flat(tree).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_bytes", [2_000_000_000, 12_000])
def test_every_bit_comes_back(tmp_path: Path, dtype: str, shard_bytes: int) -> None:
    folder = any_bits(tiny_llama(tmp_path / "hf", tie_word_embeddings=False), dtype, shard_bytes)
    assert len(list(folder.glob("*.safetensors"))) > 1 or shard_bytes > 12_000
    export_checkpoint(imported(folder, tmp_path / "params", dtype), tmp_path / "out")
    assert bits(tmp_path / "out") == bits(folder)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_bit_of_every_family_comes_back(tmp_path: Path, name: str) -> None:
    folder = any_bits(golden(name, tmp_path / "hf"), "bfloat16", 12_000)
    export_checkpoint(imported(folder, tmp_path / "params", "bfloat16"), tmp_path / "out")
    assert bits(tmp_path / "out") == bits(folder)
    ours, theirs = (AutoConfig.from_pretrained(path).to_dict() for path in (tmp_path / "out", folder))
    assert ours == theirs | {"dtype": "bfloat16", "_name_or_path": ours.get("_name_or_path")}


def test_a_router_s_bias_stays_in_the_type_that_it_has(tmp_path: Path) -> None:
    """DeepSeek-V3 has it in float32 in a bfloat16 model: rounded, it would send tokens to other experts."""
    folder = golden("deepseek_v3", tmp_path / "hf")
    values = tensors(folder)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    rewrite(folder, {k: v if k.endswith("bias") else v.astype(TYPES["bfloat16"]) for k, v in values.items()})
    params = imported(folder, tmp_path / "params", "bfloat16")
    export_checkpoint(params, tmp_path / "out")
    assert bits(tmp_path / "out") == bits(folder)
    for _, tree in (load_weights(params), load_checkpoint(folder, dtype="bfloat16")):
        assert tree["layers"]["1"]["ffn"]["router"].dtype == "bfloat16"
        np.testing.assert_array_equal(tree["layers"]["1"]["ffn"]["router_bias"], values[name])


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    folder = golden("deepseek_v3", tmp_path / "hf")
    values = tensors(folder)
    more = {
        "model.layers.3.eh_proj.weight": values["lm_head.weight"],
        "model.layers.3.enorm.weight": values["model.norm.weight"],
    }
    rewrite(folder, values | more)
    export_checkpoint(imported(folder, tmp_path / "params"), tmp_path / "out")
    assert bits(tmp_path / "out") == bits(golden("deepseek_v3", tmp_path / "plain"))
    rewrite(folder, values | {"model.layers.4.enorm.weight": values["model.norm.weight"]})
    with pytest.raises(DistillError, match=r"model\.layers\.4\.enorm\.weight is unknown"):
        imported(folder, tmp_path / "params")


def test_the_way_back_is_sharded_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = imported(tiny_llama(tmp_path / "hf"), tmp_path / "params")
    monkeypatch.setattr(convert.write_shards, "__kwdefaults__", {"shard_bytes": 20_000})
    export_checkpoint(params, tmp_path / "out")
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    found = tensors(tmp_path / "out")
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    assert bits(tmp_path / "out") == bits(tmp_path / "hf")


@pytest.mark.parametrize(
    ("theirs", "ours"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")]
)
def test_the_type_is_a_choice(tmp_path: Path, theirs: str, ours: str) -> None:
    folder = tiny_llama(tmp_path / "hf")
    values = {name: value.astype(np.dtype(theirs)) for name, value in tensors(folder).items()}
    rewrite(folder, values)
    export_checkpoint(imported(folder, tmp_path / "params", ours), tmp_path / "out")
    found = tensors(tmp_path / "out")
    for name, value in values.items():
        assert found[name].dtype == ours
        np.testing.assert_array_equal(found[name], value.astype(np.dtype(ours)))
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == ours
    assert read_info(tmp_path / "params").dtype == ours


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "hf")
    values = {name: value.copy() for name, value in tensors(folder).items()}
    values["model.norm.weight"][3] = 1e5
    rewrite(folder, values)
    with pytest.raises(DistillError, match=r"model\.norm\.weight has values beyond float16 .*choose dtype"):
        imported(folder, tmp_path / "params", "float16")
    assert not (tmp_path / "params").exists()


@pytest.mark.parametrize("name", ["llama_gqa_tied", "mixtral", "phi3", "deepseek_v2"])
@pytest.mark.parametrize("scanned", [False, True])
def test_a_mesh_of_eight_gets_what_one_device_gets(tmp_path: Path, name: str, scanned: bool) -> None:
    folder = golden(name, tmp_path / "hf")
    params = imported(folder, tmp_path / "params")
    _, alone = load_weights(params, scanned=scanned)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    for _, spread in (
        load_weights(params, mesh=mesh, scanned=scanned),
        load_checkpoint(folder, dtype="float32", mesh=mesh, scanned=scanned),
        load_checkpoint(folder, dtype="float32", scanned=scanned),
    ):
        assert raw(spread) == raw(alone)
    _, spread = load_weights(params, mesh=mesh)
    cut = [leaf for leaf in jax.tree.leaves(spread) if leaf.addressable_shards[0].data.size < leaf.size]
    assert len(cut) > len(jax.tree.leaves(spread)) / 2


def test_layers_come_stacked_or_not_as_the_caller_asks(tmp_path: Path) -> None:
    params = imported(tiny_llama(tmp_path / "hf", num_hidden_layers=3), tmp_path / "params")
    _, plain = load_weights(params)
    _, scanned = load_weights(params, scanned=True)
    assert set(scanned) == {"embed", "norm", "stacks"}
    stacked = flat(scanned["stacks"]["0"])
    for i in range(3):
        for path, value in flat(plain["layers"][str(i)]).items():
            np.testing.assert_array_equal(stacked[path][i], value)


def test_each_device_reads_its_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "hf")
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    read, sizes = source.HfWeights.read, {}

    def spy(self: source.HfWeights, name: str, index: tuple[slice, ...]) -> np.ndarray:
        value = read(self, name, index)
        sizes.setdefault(name, []).append(value.size)
        return value

    monkeypatch.setattr(source.HfWeights, "read", spy)
    load_checkpoint(folder, dtype="float32", mesh=mesh)
    whole = {name: value.size for name, value in tensors(folder).items()}
    assert set(sizes) == set(whole)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        assert sizes[name] == [whole[name] // 8] * 8
    assert max(sizes["model.embed_tokens.weight"]) == whole["model.embed_tokens.weight"] // 8


def test_import_holds_few_tensors_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "hf", intermediate_size=4096, num_hidden_layers=8)
    monkeypatch.setattr(store, "PENDING_BYTES", 1_000_000)
    largest, total = 4 * 32 * 4096, sum(value.nbytes for value in tensors(folder).values())
    bound = 1_000_000 + 3 * largest + 1_000_000  # the last for what is no tensor
    imported(folder, tmp_path / "warm")
    tracemalloc.start()
    imported(folder, tmp_path / "params")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 1_000_000 < peak < bound < total / 3


def test_export_holds_few_tensors_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = imported(tiny_llama(tmp_path / "hf", num_hidden_layers=8), tmp_path / "params")
    read_stored, alive, most = store.read_stored, set(), []

    def watched(params: Path) -> Callable[[str], np.ndarray]:
        read = read_stored(params)

        def spy(path: str) -> np.ndarray:
            value = read(path)
            alive.add(path)
            weakref.finalize(value, alive.discard, path)
            most.append(len(alive))
            return value

        return spy

    monkeypatch.setattr(convert, "read_stored", watched)
    export_checkpoint(params, tmp_path / "out")
    assert len(most) > 60
    assert max(most) <= 3  # read ahead, waiting, being written


def test_the_digest_is_that_of_the_tree_in_every_process(tmp_path: Path) -> None:
    params = imported(tiny_llama(tmp_path / "hf"), tmp_path / "params")
    digest = read_info(params).digest
    assert digest == tree_digest(load_weights(params)[1])
    code = (
        "import sys; from pathlib import Path\n"
        "from distill.checkpoints.store import load_weights, tree_digest\n"
        "print(tree_digest(load_weights(Path(sys.argv[1]))[1]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, params], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest
    assert read_info(imported(tiny_llama(tmp_path / "other", seed=1), tmp_path / "params1")).digest != digest
    assert read_info(imported(tmp_path / "hf", tmp_path / "params2", "bfloat16")).digest != digest


def test_tokenizer_template_and_generation_config_come_along(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "hf")
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 5], "temperature": 0.6})
    extra = {"auto_map": {"AutoConfig": "configuration_x.XConfig"}, "spice": 3}
    write_json(folder / "config.json", tiny_config(**extra))
    export_checkpoint(imported(folder, tmp_path / "params"), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == TEMPLATE
    config = read_json(tmp_path / "out" / "config.json")
    assert config["spice"] == 3
    assert "auto_map" not in config  # code that is not there, and would not be run
    info = read_info(tmp_path / "params")
    assert (info.source, info.real_vocab, info.vocab_size) == ("origin/model", 35, 40)
    assert set(info.eos_ids) == {1, 5}
    assert info.parameters == sum(value.size for value in tensors(folder).values())


def test_a_template_that_the_recipe_gives_is_the_model_s_from_then_on(tmp_path: Path) -> None:
    folder, mine = tiny_llama(tmp_path / "hf"), "{% for m in messages %}{{ m.content }}{% endfor %}"
    before = read_info(imported(folder, tmp_path / "before"))
    how = {"dtype": "float32", "origin": "x"}
    info = import_checkpoint(folder, tmp_path / "params", **how, chat_template=mine)
    assert (info.digest, info.tokenizer_hash == before.tokenizer_hash) == (before.digest, False)
    export_checkpoint(tmp_path / "params", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == mine
    with pytest.raises(DistillError, match="x: the chat template leaves out what a user says"):
        import_checkpoint(folder, tmp_path / "bad", **how, chat_template="{{ messages | length }}")


def test_a_tokenizer_from_elsewhere_wins(tmp_path: Path) -> None:
    folder, other = tiny_llama(tmp_path / "hf"), tiny_llama(tmp_path / "other")
    words = read_json(other / "tokenizer.json")
    words["model"]["vocab"]["!"] = 35
    write_json(other / "tokenizer.json", words)
    import_checkpoint(folder, tmp_path / "params", dtype="float32", origin="x", tokenizer=other)
    assert read_info(tmp_path / "params").real_vocab == 36


def test_old_and_new_ways_to_write_the_rotation_both_come_back_as_they_were(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    new = {"rope_parameters": {"rope_theta": 500.0, **scaling}}
    for i, way in enumerate([{"rope_theta": 500.0, "rope_scaling": scaling}, new]):
        folder = tiny_llama(tmp_path / f"hf{i}", **way)
        export_checkpoint(imported(folder, tmp_path / f"params{i}"), tmp_path / f"out{i}")
        values = json.loads((tmp_path / f"out{i}" / "config.json").read_text())
        assert values == tiny_config(**way) | {"dtype": "float32"}
    assert read_info(tmp_path / "params0").architecture == read_info(tmp_path / "params1").architecture


def test_what_orbax_itself_restores_is_the_same(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    params = imported(tiny_llama(tmp_path / "hf"), tmp_path / "params")
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(params / "weights")
    assert raw(tree) == raw(load_weights(params)[1])
    assert store.tree_digest(tree) == read_info(params).digest
