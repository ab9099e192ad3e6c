"""A Hugging Face folder as it is found: its configuration, and its safetensors read a slice at a time.

Pickle files are never opened. Everything that is wrong with a folder's tensors is reported in one error.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from distill.errors import DistillError
from distill.files import read_json
from distill.models.table import Weight

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
INDEX = "model.safetensors.index.json"
# Buffers that older checkpoints carry and the architecture recomputes.
BUFFERS = ("rotary_emb.inv_freq",)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a Hugging Face folder."""
    if not folder.is_dir():
        raise DistillError(f"{folder} is not a folder: give a Hugging Face folder or a Hub id")
    if (folder / "adapter_config.json").exists():
        raise DistillError(f"{folder} holds a LoRA adapter: merge it into its base model first")
    if not (folder / "config.json").exists():
        raise DistillError(f"{folder} has no config.json: it is no Hugging Face model")
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise DistillError(f"{folder}/config.json is not an object: fetch it again")
    return values


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int


class HfWeights:
    """The tensors of a folder, single file or sharded."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors: dict[str, Tensor] = {}
        for file in _files(folder):
            for name, tensor in _header(file):
                if name.endswith(BUFFERS):
                    continue
                if name in self.tensors:
                    twice = f"{self.tensors[name].file.name} and in {file.name}"
                    raise DistillError(f"{folder}: {name} is in {twice}: leave one of the files")
                self.tensors[name] = tensor
        _check_index(folder, self.tensors)
        _check_types(folder, self.tensors)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor. Rows are read plainly, several times as fast as through a mapping of the file;
        other cuts map it, for as long as this takes.
        """
        tensor = self.tensors[name]
        cut = [s.indices(n)[:2] for s, n in zip(index, tensor.shape, strict=True)]
        if any(bounds != (0, n) for bounds, n in zip(cut[1:], tensor.shape[1:], strict=True)):
            with _opened(tensor.file) as file:
                return file.get_slice(name)[index]
        rows = cut[0] if cut else (0, 1)
        row = prod(tensor.shape[1:])
        out = np.empty((rows[1] - rows[0]) * row, DTYPES[tensor.dtype])
        with tensor.file.open("rb") as file:
            file.seek(tensor.start + rows[0] * row * out.itemsize)
            if file.readinto(out.view(np.uint8)) != out.nbytes:
                raise DistillError(f"{tensor.file} is truncated: fetch it again")
        return out.reshape([stop - start for start, stop in cut])

    def check(
        self, weights: Iterable[Weight], *, tied: tuple[str, str] | None = None, left_out: tuple[str, ...] = ()
    ) -> None:
        """Every tensor the model needs is here with its shape, and no other; else one error lists all faults.

        tied: names (head, embedding) of a head that the model shares with its embedding. A checkpoint may
        carry it all the same; then it must be equal. left_out: beginnings of names that do not matter.
        """
        wanted = {name: weight.their_shape for weight in weights for name in weight.theirs}
        found = {name for name in self.tensors if not name.startswith(left_out)}
        faults = []
        if tied and tied[0] in found:
            found.discard(tied[0])
            if not self._equal(*tied):
                faults.append(f"{tied[0]} differs from {tied[1]} though the configuration ties them")
        faults += [f"{name} is missing" for name in wanted if name not in found]
        faults += [f"{name} is unknown" for name in sorted(found - set(wanted))]
        for name in sorted(found & set(wanted)):
            if self.tensors[name].shape != wanted[name]:
                faults.append(f"{name} has shape {list(self.tensors[name].shape)}, expected {list(wanted[name])}")
        if faults:
            shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
            raise DistillError(f"{self.folder}: tensors and config.json disagree: {shown}")

    def _equal(self, left: str, right: str) -> bool:
        a, b = self.tensors[left], self.tensors.get(right)
        if b is None or a.shape != b.shape or a.dtype != b.dtype:
            return False
        step = max(1, (1 << 24) // max(1, a.shape[-1]))
        rows = (slice(i, i + step) for i in range(0, a.shape[0], step))
        index = [(r, *[slice(None)] * (len(a.shape) - 1)) for r in rows]
        return all(self.read(left, i).tobytes() == self.read(right, i).tobytes() for i in index)


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        names = sorted(set(_index(folder).values()))
        if lost := [name for name in names if not (folder / name).exists()]:
            raise DistillError(f"{folder}: {INDEX} names {', '.join(lost)}, which is not there: fetch the folder again")
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pth", "*.pt") for p in folder.glob(pattern))
        why = f"; pickle files ({', '.join(pickles)}) are never opened: convert them to safetensors"
        raise DistillError(f"{folder} has no safetensors{why if pickles else ': fetch the folder again'}")
    return files


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except SafetensorError as error:
        with file.open("rb") as start:
            pointer = start.read(40).startswith(b"version https://git-lfs")
        why = "a Git LFS pointer, not the file itself" if pointer else f"truncated or corrupt ({error})"
        raise DistillError(f"{file} is {why}: fetch it again") from None


def _header(file: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(file), file.open("rb") as opened:  # the library checks the header, and tells all but offsets
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    for name, said in header.items():
        start = 8 + length + said["data_offsets"][0]
        yield name, Tensor(file, tuple(said["shape"]), said["dtype"], start)


def _index(folder: Path) -> dict[str, str]:
    """Tensor → file."""
    index = read_json(folder / INDEX)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise DistillError(f"{folder}/{INDEX} has no weight_map of tensors to files: fetch it again")
    return listed


def _check_index(folder: Path, tensors: dict[str, Tensor]) -> None:
    if not (folder / INDEX).exists():
        return
    listed = {name: file for name, file in _index(folder).items() if not name.endswith(BUFFERS)}
    wrong = [name for name, file in listed.items() if name not in tensors or tensors[name].file.name != file]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DistillError(
            f"{folder}: {INDEX} lists {', '.join(wrong[:5])}{more} in a file that does not hold it: "
            "fetch the folder again"
        )


def _check_types(folder: Path, tensors: dict[str, Tensor]) -> None:
    odd = {tensor.dtype: name for name, tensor in reversed(tensors.items()) if tensor.dtype not in DTYPES}
    if not odd:
        return
    shown = ", ".join(f"{dtype} (such as {name})" for dtype, name in sorted(odd.items()))
    fp8 = any(dtype.startswith("F8") for dtype in odd)
    what = "fp8 blocks, of type" if fp8 else "tensors of type"
    raise DistillError(
        f"{folder} has {what} {shown}, which are not handled, {', '.join(DTYPES)} are: "
        "take the checkpoint unquantized, or convert it to bfloat16"
    )
