"""Weights through the table: a part that is read is that part of the whole, and what is written is safetensors."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints.folders import GOLDEN, bits, tensors
from golden.families import FAMILIES
from safetensors.numpy import save_file

from distill.checkpoints.hf import plan_of, read_weight, their_tensors, write_shards
from distill.checkpoints.source import HfWeights
from distill.files import read_json
from distill.models import decoder
from distill.models.families import config_from_hf, weight_rows
from distill.models.table import Weight, weights


def table(name: str) -> list[Weight]:
    config = config_from_hf(read_json(GOLDEN / name / "config.json"))
    return list(weights(config, weight_rows(config), decoder.weight_axes(config)))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_part_is_that_part_of_the_whole(name: str) -> None:
    """Every axis that a device may get a part of, alone and with each other one."""
    source, cuts = HfWeights(GOLDEN / name), 0
    for weight in table(name):
        whole = read_weight(source, weight)
        assert whole.shape == weight.shape
        inner = {axis for group in weight.view for axis in group[1:]}
        free = [i for i, axis in enumerate(weight.axes) if axis not in inner]
        for i in free:
            for j in free:
                index = [slice(None)] * whole.ndim
                index[i], index[j] = slice(whole.shape[i] // 2, None), slice(1, max(2, whole.shape[j] // 2))
                part = read_weight(source, weight, tuple(index))
                np.testing.assert_array_equal(part, whole[tuple(index)])
                cuts += 1
    assert cuts > 30


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_table_gives_back_what_it_took(name: str) -> None:
    source, rows = HfWeights(GOLDEN / name), table(name)
    back = dict(their_tensors(rows, lambda weight: read_weight(source, weight)))
    theirs = tensors(GOLDEN / name)
    assert set(back) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(back[key], value)
    assert plan_of(rows, np.dtype(np.float32)) == [(key, value.dtype, value.shape) for key, value in back.items()]


def test_heads_are_never_cut() -> None:
    weight = next(weight for weight in table("llama_mha") if weight.ours == "layers.0.attention.q")
    with pytest.raises(AssertionError, match="cut inside the merged axes"):
        read_weight(HfWeights(GOLDEN / "llama_mha"), weight, (slice(None), slice(0, 4), slice(None)))


VALUES = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.asarray([[np.nan, -0.0]], ml_dtypes.bfloat16),
    "é": np.arange(24, dtype=np.float16).reshape(2, 3, 4).transpose(2, 0, 1),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.float32(3).reshape(()),
}


@pytest.mark.parametrize("planned", [False, True])
def test_what_is_written_is_what_the_library_writes(tmp_path: Path, planned: bool) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    plan = [(name, value.dtype, value.shape) for name, value in VALUES.items()]
    write_shards(tmp_path / "ours", iter(VALUES.items()), plan if planned else None)
    contiguous = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in VALUES.items()}
    save_file(contiguous, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    assert bits(tmp_path / "ours") == bits(tmp_path / "theirs")
    written = (tmp_path / "ours" / "model.safetensors").read_bytes()
    length = int.from_bytes(written[:8], "little")
    assert length % 8 == 0
    assert json.loads(written[8 : 8 + length])["__metadata__"] == {"format": "pt"}
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["model.safetensors"]


def test_shards_are_as_full_as_they_may_be(tmp_path: Path) -> None:
    values = [(f"t{i}", np.full(size, i, np.uint8).view(np.float16)) for i, size in enumerate([40, 60, 2, 98, 200, 10])]
    write_shards(tmp_path, values, shard_bytes=100)
    where = read_json(tmp_path / "model.safetensors.index.json")["weight_map"]
    assert [where[f"t{i}"][6:11] for i in range(6)] == ["00001", "00001", "00002", "00002", "00003", "00004"]
    assert set(where.values()) == {f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)}
    assert {name: value.tobytes() for name, value in tensors(tmp_path).items()} == {n: v.tobytes() for n, v in values}


def test_what_was_not_planned_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="planned was"):
        write_shards(tmp_path, [("a", np.zeros(3, np.float32))], [("a", np.dtype(np.float32), (4,))])
