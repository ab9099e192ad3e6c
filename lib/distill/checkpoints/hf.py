"""Weights through the table, both ways: read from a Hugging Face folder, written as safetensors."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from distill.checkpoints.source import DTYPES, INDEX, HfWeights
from distill.checkpoints.store import raw_bytes
from distill.errors import DistillError
from distill.models.table import Weight

CODES = {dtype: code for code, dtype in DTYPES.items()}
SHARD_BYTES = 2_000_000_000
WRITE_BYTES = 1 << 22  # ext4 takes a whole tensor at three times the processor time

Plan = list[tuple[str, np.dtype, tuple[int, ...]]]
"""Name, type and shape of each tensor that a folder will have, in the order of writing."""


def read_weight(
    source: HfWeights, weight: Weight, index: tuple[slice, ...] | None = None, dtype: Any = None
) -> np.ndarray:
    """Our weight, or the part of it that `index` (a slice for each of our axes) names.

    dtype: cast tensor by tensor; the file's own by default. Only the leading axis of a merged group may be
    cut: (N H) is cut between heads, never inside one.
    """
    index = tuple(slice(None) for _ in weight.shape) if index is None else index
    bounds = [s.indices(n)[:2] for s, n in zip(index, weight.shape, strict=True)]
    shape = tuple(stop - start for start, stop in bounds)
    sizes = dict(zip(weight.axes, weight.shape, strict=True))
    limits = dict(zip(weight.axes, bounds, strict=True))
    theirs = []
    for group in weight.view:
        inner = prod(sizes[axis] for axis in group[1:])
        if any(limits[axis] != (0, sizes[axis]) for axis in group[1:]):
            raise AssertionError(f"{weight.ours}: cut inside the merged axes {group}")
        start, stop = limits[group[0]]
        theirs.append((start * inner, stop * inner))
    theirs[0] = (theirs[0][0] + weight.offset, theirs[0][1] + weight.offset)
    cut = tuple(slice(*b) for b in theirs)

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return _cast(name, source.read(name, cut), dtype).reshape(shape)

    if not weight.per_expert:
        return read(weight.theirs[0], shape)
    names = weight.theirs[slice(*bounds[0])]
    first = read(names[0], shape[1:])
    out = np.empty(shape, first.dtype)
    out[0] = first
    for e, name in enumerate(names[1:], 1):
        out[e] = read(name, shape[1:])
    return out


def their_tensors(weights: Iterable[Weight], read: Callable[[Weight], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors in their names and shapes; `read(weight)` gives ours. Parts of a fused tensor are joined."""
    waiting: dict[str, list[tuple[int, np.ndarray]]] = {}
    for weight in weights:
        ours = read(weight)
        for e, name in enumerate(weight.theirs):
            value = ours[e] if weight.per_expert else ours
            value = value.reshape(weight.rows, *weight.their_shape[1:])
            if weight.rows == weight.their_shape[0]:
                yield name, value
                continue
            parts = waiting.setdefault(name, [])
            parts.append((weight.offset, value))
            if sum(len(part) for _, part in parts) == weight.their_shape[0]:
                del waiting[name]
                yield name, np.concatenate([part for _, part in sorted(parts, key=lambda p: p[0])])


def plan_of(weights: Iterable[Weight], dtype: np.dtype, kept: Mapping[str, np.dtype] | None = None) -> Plan:
    """What `their_tensors` will give, known before any of it is read.

    dtype: of all weights but those in `kept`, which have a type of their own.
    """

    def hollow(weight: Weight) -> np.ndarray:
        return np.broadcast_to(np.zeros((), (kept or {}).get(weight.ours, dtype)), weight.shape)

    tensors = their_tensors(weights, hollow)
    return [(name, value.dtype, value.shape) for name, value in tensors]


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    plan: Plan | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors: one file, or numbered shards of up to `shard_bytes` and their index.

    plan: of the tensors to come, of which then one at a time is held; without it all are.
    """
    if plan is None:
        tensors = list(tensors)
        plan = [(name, value.dtype, value.shape) for name, value in tensors]
    shards: list[Plan] = [[]]
    room = shard_bytes
    for entry in plan:
        if shards[-1] and _size(entry) > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= _size(entry)
    count, coming, where = len(shards), iter(tensors), {}
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors" if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
        _write_shard(folder / name, shard, coming)
        where |= {tensor: name for tensor, _, _ in shard}
    if count > 1:
        index = {"metadata": {"total_size": sum(map(_size, plan))}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(out: Path, plan: Plan, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    """The format: eight bytes of the header's length, the header in JSON, then the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in plan:
        name, dtype, shape = entry
        start, end = end, end + _size(entry)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with out.open("wb") as file:
        try:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in plan:
                name, value = next(tensors)
                if (name, value.dtype, value.shape) != entry:
                    raise AssertionError(f"{name} {value.dtype} {value.shape} came, planned was {entry}")
                data = raw_bytes(value)
                for start in range(0, len(data), WRITE_BYTES):
                    file.write(data[start : start + WRITE_BYTES])
        except OSError as error:  # a full disk; it does not say where
            raise OSError(error.errno, error.strerror, str(out)) from None


def _size(entry: tuple[str, np.dtype, tuple[int, ...]]) -> int:
    return entry[1].itemsize * prod(entry[2])


def _cast(name: str, value: np.ndarray, dtype: Any) -> np.ndarray:
    """`value` as `dtype`; what float16 cannot hold is refused, it would become infinite."""
    if dtype is None or value.dtype == dtype:
        return value
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if cast.dtype == np.float16 and (np.isinf(cast) & np.isfinite(value)).any():
        raise DistillError(f"{name} has values beyond float16 (65504): choose dtype bfloat16 or float32")
    return cast
