"""Bad folders: one line that names the thing, the value and the remedy, and nothing left behind."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints.folders import bits, rewrite, tensors
from small_disk import small_disk
from tiny_models import tiny_config, tiny_llama

from distill.checkpoints.convert import export_checkpoint, import_checkpoint
from distill.checkpoints.source import INDEX
from distill.errors import DistillError
from distill.files import read_json, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "hf")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "hf", shard_bytes=20_000)


def refused(folder: Path, match: str) -> str:
    """The error of an import that must fail; a params folder that was there before stays as it was."""
    out = folder.parent / "params"
    out.mkdir(exist_ok=True)
    (out / "model.json").write_text("before")
    with pytest.raises(DistillError, match=match) as caught:
        import_checkpoint(folder, out, dtype="float32", origin="owner/model")
    assert "\n" not in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["model.json"]
    assert (out / "model.json").read_text() == "before"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "params"}
    return str(caught.value)


def config(folder: Path, **changes: object) -> None:
    write_json(folder / "config.json", tiny_config(**changes))


def change(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    values = tensors(folder)
    edit(values)
    rewrite(folder, values)


def test_a_truncated_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(folder, r"model\.safetensors is truncated or corrupt .*: fetch it again")


def test_a_corrupt_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for start in (b"\xff" * 8, struct.pack("<Q", 10), whole[:8] + b"not json"):
        file.write_bytes(start + whole[len(start) :])
        refused(folder, r"model\.safetensors is truncated or corrupt .*: fetch it again")
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["model.norm.weight"]["data_offsets"][0] += 4
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)[:length]
    file.write_bytes(whole[:8] + text + whole[8 + length :])
    refused(folder, "truncated or corrupt")


def test_a_git_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 67584\n"
    (folder / "model.safetensors").write_text(pointer)
    refused(folder, r"model\.safetensors is a Git LFS pointer, not the file itself: fetch it again")


def test_a_file_that_shrinks_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distill.checkpoints.convert as convert

    check = convert.load_tokenizer

    def shrink(path: Path) -> object:
        os.truncate(folder / "model.safetensors", 40_000)
        return check(path)

    monkeypatch.setattr(convert, "load_tokenizer", shrink)
    refused(folder, r"model\.safetensors is truncated: fetch it again")


def test_a_shard_of_the_index_is_missing(sharded: Path) -> None:
    (sharded / "model-00002-of-00004.safetensors").unlink()
    refused(sharded, rf"{INDEX} names model-00002-of-00004\.safetensors, which is not there: fetch")


def test_a_shard_without_what_the_index_says(sharded: Path) -> None:
    index = read_json(sharded / INDEX)
    index["weight_map"]["model.norm.weight"] = "model-00003-of-00004.safetensors"
    write_json(sharded / INDEX, index)
    refused(sharded, r"lists model\.norm\.weight in a file that does not hold it")
    for broken in ({"weight_map": ["a"]}, {"weight_map": {"a": 1}}, [], {}):
        write_json(sharded / INDEX, broken)
        refused(sharded, "has no weight_map of tensors to files")
    (sharded / INDEX).write_text("{")
    refused(sharded, "is not JSON")


def test_shards_without_an_index_are_read_and_a_lost_one_is_seen(sharded: Path, tmp_path: Path) -> None:
    (sharded / INDEX).unlink()
    import_checkpoint(sharded, tmp_path / "good", dtype="float32", origin="x")
    export_checkpoint(tmp_path / "good", tmp_path / "out")
    assert bits(tmp_path / "out") == bits(sharded)
    for done in ("good", "out"):
        shutil.rmtree(tmp_path / done)
    shutil.copyfile(sharded / "model-00001-of-00004.safetensors", sharded / "old.safetensors")
    refused(sharded, r"is in model-00001-of-00004\.safetensors and in old\.safetensors: leave one")
    (sharded / "old.safetensors").unlink()
    (sharded / "model-00001-of-00004.safetensors").unlink()
    refused(sharded, r"model\.embed_tokens\.weight is missing")


def test_all_faults_of_the_tensors_in_one_error(folder: Path) -> None:
    def edit(values: dict[str, np.ndarray]) -> None:
        del values["model.layers.1.mlp.up_proj.weight"], values["model.norm.weight"]
        values["model.layers.0.self_attn.q_proj.scale"] = np.ones(3, np.float32)
        values["model.embed_tokens.weight"] = values["model.embed_tokens.weight"][:39]
        values["model.layers.0.mlp.down_proj.weight"] = values["model.layers.0.mlp.down_proj.weight"].T

    change(folder, edit)
    text = refused(folder, "tensors and config.json disagree")
    for part in (
        "model.layers.1.mlp.up_proj.weight is missing",
        "model.norm.weight is missing",
        "model.layers.0.self_attn.q_proj.scale is unknown",
        "model.embed_tokens.weight has shape [39, 32], expected [40, 32]",
        "model.layers.0.mlp.down_proj.weight has shape [48, 32], expected [32, 48]",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"hidden_size": 64}, r"q_proj\.weight has shape \[32, 32\], expected \[64, 64\]"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.input_layernorm\.weight is unknown"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.input_layernorm\.weight is missing"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight has shape \[16, 32\], expected \[32, 32\]"),
        ({"vocab_size": 48}, r"embed_tokens\.weight has shape \[40, 32\], expected \[48, 32\]"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
        ({"attention_bias": True}, r"q_proj\.bias is missing"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"num_attention_heads": 0}, "axes N are empty"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": None}, "no hidden_size"),
    ],
)
def test_a_config_that_contradicts_the_tensors(folder: Path, changes: dict, fault: str) -> None:
    config(folder, **changes)
    refused(folder, fault)


def test_many_faults_are_counted(folder: Path) -> None:
    config(folder, num_hidden_layers=20)
    assert refused(folder, "disagree").endswith("; and 142 more")


def test_an_architecture_that_is_not_supported(folder: Path) -> None:
    config(folder, architectures=["GPT2LMHeadModel"])
    refused(folder, r"owner/model: architecture not supported: GPT2LMHeadModel; supported are Llama")
    config(folder, architectures=[])
    refused(folder, "architecture not supported: none named")


def test_fp8_blocks_are_named(folder: Path) -> None:
    """Written by hand: numpy has no such type for the library to write."""
    fp8 = ("model.layers.0.mlp.up_proj.weight", "F8_E4M3", [48, 32], 48 * 32)
    scale = ("model.layers.0.mlp.up_proj.weight_scale_inv", "F32", [1, 1], 4)
    header, end = {}, 0
    for name, dtype, shape, size in (fp8, scale):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + size]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    refused(folder, r"has fp8 blocks, of type F8_E4M3 \(such as model\.layers\.0\.mlp\.up_proj\.weight\), which")


def test_other_types_are_named(folder: Path) -> None:
    length = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    whole = (folder / "model.safetensors").read_bytes()
    header = json.loads(whole[8 : 8 + length])
    header["model.norm.weight"]["dtype"] = "I32"
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    (folder / "model.safetensors").write_bytes(whole[:8] + text + whole[8 + length :])
    refused(folder, r"tensors of type I32 \(such as model\.norm\.weight\), .*F32, BF16, F16 are: take")


def test_tied_weights_present_twice(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda values: values.update({"lm_head.weight": values["model.embed_tokens.weight"]}))
    import_checkpoint(folder, tmp_path / "good", dtype="float32", origin="x")
    shutil.rmtree(tmp_path / "good")

    def edit(values: dict[str, np.ndarray]) -> None:
        values["lm_head.weight"] = values["model.embed_tokens.weight"].copy()
        values["lm_head.weight"][39, 31] += 1

    change(folder, edit)
    refused(folder, r"lm_head\.weight differs from model\.embed_tokens\.weight though .* ties them")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)  # whoever opens it waits for ever
    refused(folder, rf"has no safetensors; pickle files \({name}\) are never opened: convert them")


def test_code_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nclass X: pass\n"
    for kind in ("configuration", "modeling", "tokenization"):
        (folder / f"{kind}_x.py").write_text(code)
    config(folder, auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"})
    words = read_json(folder / "tokenizer_config.json")
    words |= {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]}}
    write_json(folder / "tokenizer_config.json", words)
    import_checkpoint(folder, tmp_path / "params", dtype="float32", origin="x")
    export_checkpoint(tmp_path / "params", tmp_path / "out")
    assert not marker.exists()
    assert not list((tmp_path / "out").glob("*.py"))


def test_no_folder_no_config_no_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "has no safetensors: fetch the folder again")
    (folder / "config.json").write_text("[1]")
    refused(folder, r"config\.json is not an object")
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json is not JSON")
    (folder / "config.json").unlink()
    refused(folder, r"has no config\.json")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "holds a LoRA adapter: merge it")
    with pytest.raises(DistillError, match="nowhere is not a folder"):
        import_checkpoint(tmp_path / "nowhere", tmp_path / "out", dtype="float32", origin="x")


def test_a_tokenizer_larger_than_the_embedding(folder: Path) -> None:
    config(folder, vocab_size=20)
    change(folder, lambda values: values.update(
        {"model.embed_tokens.weight": values["model.embed_tokens.weight"][:20]}))  # fmt: skip
    refused(folder, "owner/model: the tokenizer knows 35 ids, the embedding has 20 rows")


def test_buffers_that_old_checkpoints_carry_are_left_out(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda values: values.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))  # fmt: skip
    import_checkpoint(folder, tmp_path / "params", dtype="float32", origin="x")
    export_checkpoint(tmp_path / "params", tmp_path / "out")
    assert not any("inv_freq" in name for name in tensors(tmp_path / "out"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for a params folder of 3 MB and not for two."""
    with small_disk(tmp_path / "disk", "5m") as folder:
        yield folder


def script(root: Path, name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "scripts" / f"{name}.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_full_disk_leaves_what_was_there(root: Path, tmp_path: Path, disk: Path) -> None:
    source = tiny_llama(tmp_path / "hf", intermediate_size=4096)
    model = json.dumps({"source": "owner/model"})
    out = disk / "params"
    arguments = ("--source", source, "--tokenizer", source, "--model", model, "--out", out)
    done = script(root, "import_checkpoint", *arguments)
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name, given in (
        ("import_checkpoint", arguments),
        ("export_checkpoint", ("--params", out, "--out", disk / "export")),
    ):
        done = script(root, name, *given)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("error: no space left writing ")
        assert "Traceback" not in done.stderr
        assert [path.name for path in disk.iterdir()] == ["params"]
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_script_says_it_in_one_line(root: Path, folder: Path, tmp_path: Path) -> None:
    config(folder, num_hidden_layers=1)
    model = json.dumps({"source": "owner/model"})
    done = script(root, "import_checkpoint", "--source", folder, "--tokenizer", folder, "--model", model,
                  "--out", tmp_path / "params")  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "params").exists()
