"""A model's params folder: Orbax weights, `model.json`, and the tokenizer's files.

params/
  model.json      what it is: architecture, where it came from, digests
  weights/        Orbax checkpoint of the unscanned tree
  tokenizer/      tokenizer and configuration files as the source had them
"""

import hashlib
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import Mesh

from distill.checkpoints.info import read_info
from distill.errors import DistillError, full_disk_as_oserror
from distill.models import decoder, layouts
from distill.models.config import ModelConfig
from distill.parallel.mesh import weight_sharding

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json", "config.json",
)  # fmt: skip
CHUNK_BYTES = 64_000_000  # a process that wants a part of a weight reads the chunks that the part lies in
PENDING_BYTES = 300_000_000  # read, and not yet on disk
# Orbax reports each save at INFO, its internals at WARNING and a full disk at ERROR with a traceback from its
# thread; what matters arrives as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def copy_tokenizer(sources: Iterable[Path], out: Path) -> None:
    """Gather tokenizer and configuration files; an earlier source wins over a later one."""
    out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        for name in TOKENIZER_FILES:
            if (source / name).exists() and not (out / name).exists():
                shutil.copyfile(source / name, out / name)


@dataclass(frozen=True)
class Lazy:
    """A weight that is read when its turn comes to be saved."""

    read: Callable[[], np.ndarray]


def save_weights(folder: Path, tree: decoder.Params) -> str:
    """Save an unscanned tree of arrays or `Lazy` leaves, a few at a time; gives its `tree_digest`.

    Uncompressed, since weights do not compress. The process that calls it saves all; it waits for no other.
    """
    leaves = {
        path: leaf if isinstance(leaf, Lazy) else Lazy(lambda leaf=leaf: np.asarray(leaf))
        for path, leaf in flat(tree).items()
    }
    stream = _Stream()
    registry = ocp.type_handlers.create_type_handler_registry((Lazy, stream))
    lazy = nest(leaves)
    arguments = ocp.args.PyTreeSave(
        lazy, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), lazy)
    )
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=registry, multiprocessing_options=options
    )
    with full_disk_as_oserror(folder):
        try:
            with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
                checkpointer.save(folder.absolute(), args=arguments)
        except BaseException:
            stream.wait()  # else what is still being written comes back after the folder's removal
            raise
    return _total(stream.digests)


class _Stream(ocp.type_handlers.NumpyHandler):
    """Saves `Lazy` leaves as Orbax saves numpy arrays, and notes the digest of each."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self.digests: dict[str, bytes] = {}
        self.writing: deque[tuple[int, Any]] = deque()

    async def serialize(
        self, values: Sequence[Lazy], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """Read, hash and hand over one weight at a time, while those before it are written.

        One write a call: when it fails, Orbax closes the event loop under others of the same call.
        """
        for leaf, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            value = leaf.read()
            self.digests[info.name] = leaf_digest(info.name, value)
            (written,) = await super().serialize([value], [info], [arg])
            self.writing.append((value.nbytes, written))
            while sum(size for size, _ in self.writing) > PENDING_BYTES:
                self.writing.popleft()[1].result()
        return [written for _, written in self.writing]

    def wait(self) -> None:
        """Until nothing is being written any more, failed or not."""
        for _, written in self.writing:
            with suppress(Exception):
                written.result()


def load_weights(
    params: Path, *, mesh: Mesh | None = None, dtype: Any = None, scanned: bool = False
) -> tuple[ModelConfig, decoder.Params]:
    """Restore a model's weights, each device its part.

    mesh: where the weights go by their named axes; the first device alone by default.
    dtype: cast on the way in; the stored one by default.
    scanned: stack the layers for training.
    """
    info = read_info(params)
    config, dtype = info.architecture, dtype or info.dtype
    axes = decoder.weight_axes(config)
    tree = nest({path: _abstract(config, axes[path], mesh, decoder.loaded_type(path, dtype)) for path in axes})
    arguments = ocp.args.PyTreeRestore(item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    folder = (params / "weights").absolute()
    with _restoring(params), _checkpointer() as checkpointer:
        _check_shapes(tree, checkpointer.metadata(folder).item_metadata)
        weights = checkpointer.restore(folder, args=arguments)
    return config, layouts.stack(config, weights) if scanned else weights


def _check_shapes(wanted: decoder.Params, stored: Any) -> None:
    """Orbax would only see it while it reads, and what else it has begun to read then ends in a loop that is closed."""
    if stored is None or stored.tree is None:
        return  # the restore says why
    there = flat(stored.tree)
    for path, leaf in flat(wanted).items():
        if path in there and tuple(there[path].shape) != tuple(leaf.shape):
            raise ValueError(f"{path} is stored as {tuple(there[path].shape)}, model.json makes it {tuple(leaf.shape)}")


def read_stored(params: Path) -> Callable[[str], np.ndarray]:
    """A reader of single weights by their dotted path, as they are stored.

    Orbax would read the tree's description anew for each, and every byte through one buffer more: a third of
    the speed. What it writes is a TensorStore database with an array a weight.
    """
    base = {"driver": "file", "path": f"{(params / 'weights').absolute()}/", "file_io_mode": {"mode": "memmap"}}

    def read(path: str) -> np.ndarray:
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{path}/"}}
        with _restoring(params):
            return ts.open(spec, open=True, read=True).result().read().result()

    return read


def tree_digest(tree: decoder.Params) -> str:
    """SHA-256 (hex) over every tensor of an unscanned tree."""
    return _total({path: leaf_digest(path, np.asarray(value)) for path, value in flat(tree).items()})


def leaf_digest(path: str, value: np.ndarray) -> bytes:
    """What one tensor adds to `tree_digest`."""
    one = hashlib.sha256(f"{path} {value.dtype.name} {list(value.shape)} ".encode())
    one.update(raw_bytes(value))
    return one.digest()


def raw_bytes(value: np.ndarray) -> memoryview:
    """The bytes of an array, row by row, without a copy where it lies so already."""
    return memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


def _total(digests: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(digests[path] for path in sorted(digests))).hexdigest()


def flat(tree: decoder.Params, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to dotted paths."""
    out = {}
    for name, value in tree.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def nest(leaves: dict[str, Any]) -> decoder.Params:
    """Dotted paths to nested dictionaries."""
    tree: decoder.Params = {}
    for path, value in leaves.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def sharding_of(mesh: Mesh | None, axes: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Where a weight goes: by its axes on the mesh, or whole on the first device."""
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return weight_sharding(mesh, axes, shape)


def _abstract(config: ModelConfig, axes: str, mesh: Mesh | None, dtype: Any) -> jax.ShapeDtypeStruct:
    shape = tuple(config.sizes[axis] for axis in axes.split())
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding_of(mesh, axes, shape))


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


@contextmanager
def _restoring(params: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DistillError(f"{params}/weights cannot be restored ({reason}): delete {params} and run again") from error
