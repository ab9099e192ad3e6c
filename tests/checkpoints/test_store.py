"""The params folder: what is saved comes back, and what is broken is said in one line."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny_models import tiny_llama

from distill.checkpoints import store
from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.info import read_info
from distill.checkpoints.store import (
    Lazy,
    copy_tokenizer,
    flat,
    load_weights,
    nest,
    read_stored,
    save_weights,
    tree_digest,
)
from distill.errors import DistillError
from distill.files import read_json, write_json
from distill.parallel.mesh import make_mesh, weight_sharding


@pytest.fixture
def params(tmp_path: Path) -> Path:
    import_checkpoint(tiny_llama(tmp_path / "hf"), tmp_path / "params", dtype="float32", origin="x")
    return tmp_path / "params"


def test_numpy_jax_sharded_and_lazy_leaves_are_saved_alike(tmp_path: Path) -> None:
    value = np.random.default_rng(0).normal(size=(8, 16)).astype(ml_dtypes.bfloat16)
    sharding = weight_sharding(make_mesh({"fsdp": 4, "tensor": 2}), "V D", value.shape)
    kinds = [value, jnp.asarray(value), jax.device_put(value, sharding), Lazy(lambda: value)]
    for i, leaf in enumerate(kinds):
        tree = {"a": leaf, "b": {"c": np.arange(3, dtype=np.float32)}}
        digest = save_weights(tmp_path / str(i) / "weights", tree)
        assert digest == tree_digest(tree | {"a": value})
        read = read_stored(tmp_path / str(i))
        assert read("a").dtype == value.dtype
        assert read("a").tobytes() == value.tobytes()
        assert read("b.c").tolist() == [0, 1, 2]


def test_the_digest_is_what_the_docstring_says(tmp_path: Path) -> None:
    """Spelled out once more: a change of definition would orphan every dataset's `distill.teacher`."""
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
    heads = (("x.a", b"x.a float32 [2, 3] ", a), ("x.b", b"x.b float16 [4] ", b))
    parts = [hashlib.sha256(head + value.tobytes()).digest() for _, head, value in heads]
    expected = hashlib.sha256(b"".join(parts)).hexdigest()
    assert tree_digest({"x": {"b": b, "a": a}}) == expected
    assert tree_digest({"x": {"b": b, "a": np.asfortranarray(a)}}) == expected
    assert save_weights(tmp_path / "weights", {"x": {"b": b, "a": a}}) == expected


@pytest.mark.parametrize("other", [{"a": np.zeros(3)}, {"b": np.zeros(2)}, {"a": np.ones(2)}, {"a": np.zeros(2, "i8")}])
def test_the_digest_sees_name_shape_type_and_bytes(other: dict) -> None:
    assert tree_digest(other) != tree_digest({"a": np.zeros(2)})


def test_cast_on_the_way_in(params: Path) -> None:
    _, wide = load_weights(params)
    _, narrow = load_weights(params, dtype="bfloat16")
    for path, value in flat(narrow).items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, flat(wide)[path].astype(jnp.bfloat16))


def test_large_weights_lie_in_chunks(params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BYTES", 1024)
    _, tree = load_weights(params)
    assert save_weights(tmp_path / "again" / "weights", tree) == read_info(params).digest
    (tmp_path / "again" / "model.json").write_bytes((params / "model.json").read_bytes())
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    assert tree_digest(load_weights(tmp_path / "again", mesh=mesh)[1]) == read_info(params).digest


def test_flat_and_nest_undo_each_other() -> None:
    tree = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert flat(tree) == {"a": 1, "b.c": 2, "b.d.e": 3}
    assert nest(flat(tree)) == tree


def test_an_earlier_source_of_the_tokenizer_wins(tmp_path: Path) -> None:
    for name, files in (("first", ["tokenizer.json"]), ("second", ["tokenizer.json", "config.json", "x.bin"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    copy_tokenizer([tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {"tokenizer.json": "first", "config.json": "second"}


def test_no_params_folder(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"is not a params folder: it has no model\.json"):
        read_info(tmp_path)


def test_another_schema(params: Path) -> None:
    write_json(params / "model.json", read_json(params / "model.json") | {"schema_version": 99})
    with pytest.raises(DistillError, match=r"model\.json has schema 99, this distill reads 1: delete"):
        read_info(params)


def weights_gone(params: Path) -> None:
    shutil.rmtree(params / "weights")


def data_truncated(params: Path) -> None:
    for file in (params / "weights").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def manifest_garbled(params: Path) -> None:
    for file in (params / "weights").rglob("manifest.ocdbt"):
        file.write_bytes(b"garbage")


def metadata_garbled(params: Path) -> None:
    (params / "weights" / "_METADATA").write_text("{")


def shape_changed(params: Path) -> None:
    info = read_json(params / "model.json")
    info["architecture"]["ffn"] = 52
    write_json(params / "model.json", info)


def test_weights_that_cannot_be_restored(params: Path, tmp_path: Path) -> None:
    """In a process of its own: Orbax leaves its other reads half done, and they complain as they are collected."""
    damages = (weights_gone, data_truncated, manifest_garbled, metadata_garbled, shape_changed)
    folders = [tmp_path / damage.__name__ for damage in damages]
    for folder, damage in zip(folders, damages, strict=True):
        shutil.copytree(params, folder)
        damage(folder)
    code = (
        "import sys; from pathlib import Path\n"
        "from distill.checkpoints.store import load_weights\n"
        "from distill.errors import DistillError\n"
        "for folder in sys.argv[1:]:\n"
        "    try: load_weights(Path(folder))\n"
        "    except DistillError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(folders), done.stderr
    for folder, line in zip(folders, lines, strict=True):
        assert re.fullmatch(rf"{folder}/weights cannot be restored \(.+\): delete {folder} and run again", line)
