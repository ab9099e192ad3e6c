"""Hugging Face folders: safetensors read a slice at a time, and written in shards with an index.

Pickle files are never opened. Everything that is wrong with a folder's tensors is reported in one error.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill.errors import DistillError
from distill.files import read_json
from distill.models.table import Weight

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
INDEX = "model.safetensors.index.json"
# Buffers that older checkpoints carry and the architecture recomputes.
BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class HfWeights:
    """The tensors of a folder, single file or sharded."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors = {name: tensor for file in _files(folder) for name, tensor in _header(file)}
        _check_index(folder, self.tensors)
        odd = sorted({t.dtype for t in self.tensors.values()} - set(DTYPES))
        if odd:
            raise DistillError(
                f"{folder}: tensors of type {', '.join(odd)} are not handled, {', '.join(DTYPES)} are"
            )

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor; the file is mapped only for as long as this takes."""
        tensor = self.tensors[name]
        with _opened(tensor.file) as file:
            return file.get_slice(name)[index if tensor.shape else ...]

    def check(self, weights: Iterable[Weight], *, tied: tuple[str, str] | None = None) -> None:
        """Every tensor the model needs is here with its shape, and no other; else one error lists all faults.

        tied: names (head, embedding) of a head that the model shares with its embedding. A checkpoint may
        carry it all the same; then it must be equal.
        """
        wanted = {name: weight.their_shape for weight in weights for name in weight.theirs}
        found = {name for name in self.tensors if not name.endswith(BUFFERS)}
        faults = []
        if tied and tied[0] in found:
            found.discard(tied[0])
            if not self._equal(*tied):
                faults.append(f"{tied[0]} differs from {tied[1]} though the configuration ties them")
        faults += [f"{name} is missing" for name in wanted if name not in found]
        faults += [f"{name} is unknown" for name in sorted(found - set(wanted))]
        for name in sorted(found & set(wanted)):
            if self.tensors[name].shape != wanted[name]:
                faults.append(
                    f"{name} has shape {list(self.tensors[name].shape)}, expected {list(wanted[name])}"
                )
        if faults:
            shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
            raise DistillError(f"{self.folder}: tensors and config.json disagree: {shown}")

    def _equal(self, left: str, right: str) -> bool:
        a, b = self.tensors[left], self.tensors.get(right)
        if b is None or a.shape != b.shape or a.dtype != b.dtype:
            return False
        step = max(1, (1 << 24) // max(1, a.shape[-1]))
        rows = (slice(i, i + step) for i in range(0, a.shape[0], step))
        return all(self.read(left, (r,)).tobytes() == self.read(right, (r,)).tobytes() for r in rows)


def read_weight(source: HfWeights, weight: Weight, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """Our weight, or the part of it that `index` (a slice for each of our axes) names, in the file's dtype.

    Only the leading axis of a merged group may be cut: (N H) is cut between heads, never inside one.
    """
    index = tuple(slice(None) for _ in weight.shape) if index is None else index
    bounds = [s.indices(n)[:2] for s, n in zip(index, weight.shape, strict=True)]
    shape = tuple(stop - start for start, stop in bounds)
    experts = range(*bounds[0]) if weight.per_expert else [0]
    sizes = dict(zip(weight.axes, weight.shape, strict=True))
    limits = dict(zip(weight.axes, bounds, strict=True))
    theirs = []
    for group in weight.view:
        inner = int(np.prod([sizes[axis] for axis in group[1:]], dtype=np.int64))
        if any(limits[axis] != (0, sizes[axis]) for axis in group[1:]):
            raise AssertionError(f"{weight.ours}: cut inside the merged axes {group}")
        start, stop = limits[group[0]]
        theirs.append((start * inner, stop * inner))
    theirs[0] = (theirs[0][0] + weight.offset, theirs[0][1] + weight.offset)
    cut = tuple(slice(*b) for b in theirs)
    parts = [
        source.read(weight.theirs[e], cut).reshape(shape[1:] if weight.per_expert else shape) for e in experts
    ]
    return np.stack(parts) if weight.per_expert else parts[0]


def their_tensors(weights: Iterable[Weight], read: Any) -> Iterator[tuple[str, np.ndarray]]:
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
                yield (
                    name,
                    np.concatenate([part for _, part in sorted(waiting.pop(name), key=lambda p: p[0])]),
                )


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], *, shard_bytes: int = 2_000_000_000
) -> None:
    """Write safetensors: one file, or numbered shards and their index once `shard_bytes` is passed."""
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        save_file(held, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, value in tensors:
        if held and sum(a.nbytes for a in held.values()) + value.nbytes > shard_bytes:
            flush()
        held[name] = np.ascontiguousarray(value)
        total += value.nbytes
    flush()
    if len(shards) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(names):
        (folder / f"part-{i}").rename(folder / name)
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DistillError(f"{folder} is not a folder: give a Hugging Face folder or a Hub id")
    if (folder / INDEX).exists():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        if lost := [name for name in names if not (folder / name).exists()]:
            raise DistillError(
                f"{folder}: {INDEX} names {', '.join(lost)}, which is not there: fetch the folder again"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pth", "*.pt") for p in folder.glob(pattern))
        why = (
            f"; pickle files ({', '.join(pickles)}) are never opened: convert them to safetensors"
            if pickles
            else ""
        )
        raise DistillError(f"{folder} has no safetensors{why}")
    return files


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except SafetensorError as error:
        raise DistillError(f"{file} is truncated or corrupt ({error}): fetch it again") from None


def _header(file: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(file) as opened:
        for name in opened.keys():  # noqa: SIM118, not a dictionary
            part = opened.get_slice(name)
            yield name, Tensor(file, tuple(part.get_shape()), part.get_dtype())


def _check_index(folder: Path, tensors: dict[str, Tensor]) -> None:
    if not (folder / INDEX).exists():
        return
    listed = read_json(folder / INDEX)["weight_map"]
    wrong = [name for name, file in listed.items() if name not in tensors or tensors[name].file.name != file]
    if wrong:
        raise DistillError(f"{folder}: {INDEX} lists {', '.join(wrong[:5])} in a file that does not hold it")
