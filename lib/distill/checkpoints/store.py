"""A model's params folder: Orbax weights, `model.json`, and the tokenizer's files.

params/
  model.json      what it is: architecture, where it came from, digests
  weights/        Orbax checkpoint of the unscanned tree
  tokenizer/      tokenizer and configuration files as the source had them
"""

import hashlib
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from pydantic import BaseModel, ConfigDict

from distill import SCHEMA_VERSION
from distill.errors import DistillError
from distill.files import read_json, write_json
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.parallel.mesh import weight_sharding

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json", "config.json",
)  # fmt: skip
# Orbax reports each save at INFO and its own internals at WARNING; what matters arrives as an exception.
logging.getLogger("absl").setLevel(logging.ERROR)


class ModelInfo(BaseModel):
    """`model.json`. `digest` is over every tensor's name, type, shape and bytes, in order of name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    source: str
    revision: str | None = None
    dtype: str
    architecture: ModelConfig
    hf_config: dict[str, Any]
    parameters: int
    vocab_size: int
    real_vocab: int
    eos_ids: list[int]
    tokenizer_hash: str
    digest: str


def read_info(params: Path) -> ModelInfo:
    """Read `model.json`; its absence says that this is no params folder."""
    if not (params / "model.json").exists():
        raise DistillError(f"{params} is not a params folder: it has no model.json")
    values = read_json(params / "model.json")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise DistillError(
            f"{params}/model.json has schema {values.get('schema_version')}, this distill reads "
            f"{SCHEMA_VERSION}: delete the folder and let it be made again"
        )
    return ModelInfo.model_validate(values)


def write_info(params: Path, info: ModelInfo) -> None:
    """Write `model.json`."""
    write_json(params / "model.json", info.model_dump(mode="json"))


def copy_tokenizer(sources: Iterable[Path], out: Path) -> None:
    """Gather tokenizer and configuration files; an earlier source wins over a later one."""
    out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        for name in TOKENIZER_FILES:
            if (source / name).exists() and not (out / name).exists():
                shutil.copyfile(source / name, out / name)


def save_weights(folder: Path, tree: decoder.Params) -> None:
    """Save an unscanned tree of jax or numpy arrays; uncompressed, since weights do not compress."""
    with _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))


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
    tree = nest(
        {path: _abstract(config, axes, mesh, dtype) for path, axes in decoder.weight_axes(config).items()}
    )
    arguments = ocp.args.PyTreeRestore(
        item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
    )
    try:
        with _checkpointer() as checkpointer:
            weights = checkpointer.restore((params / "weights").absolute(), args=arguments)
    except (FileNotFoundError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DistillError(
            f"{params}/weights cannot be restored ({reason}): delete {params} and run again"
        ) from error
    return config, decoder.stack(config, weights) if scanned else weights


def tree_digest(tree: decoder.Params) -> str:
    """SHA-256 (hex) over every tensor of an unscanned tree."""
    total = hashlib.sha256()
    for path, value in sorted(flat(tree).items()):
        total.update(leaf_digest(path, np.asarray(value)))
    return total.hexdigest()


def leaf_digest(path: str, value: np.ndarray) -> bytes:
    """What one tensor adds to `tree_digest`."""
    head = f"{path} {value.dtype.name} {list(value.shape)} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).digest()


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


def _abstract(config: ModelConfig, axes: str, mesh: Mesh | None, dtype: Any) -> jax.ShapeDtypeStruct:
    shape = tuple(config.sizes[axis] for axis in axes.split())
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sharding = one if mesh is None else weight_sharding(mesh, axes, shape)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
