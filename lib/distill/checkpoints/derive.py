"""A student made of a teacher's own weights: some of its layers, heads and neurons, and all of its vocabulary."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from distill.checkpoints.info import ModelInfo, read_info, write_info
from distill.checkpoints.store import Lazy, copy_tokenizer, load_weights, nest, read_stored, save_weights
from distill.config.models import Derive
from distill.errors import DistillError
from distill.files import replacing
from distill.models import decoder
from distill.models.activations import squared_norms
from distill.models.config import ModelConfig
from distill.models.families import config_from_hf, config_to_hf

ROWS, BUCKET = 8, 64  # prompts that are read together, and what their length is rounded up to
Kept = dict[str, list[np.ndarray]]  # by axis, for each layer that is kept: which of its entries


def derive_student(
    parent: Path, out: Path, derive: Derive, *, dtype: str, origin: str, prompts: Sequence[Sequence[int]] = ()
) -> ModelInfo:
    """Write a params folder with the weights that `derive` keeps of the one at `parent`; its tokenizer is the same.

    prompts: token ids that heads and neurons are judged on; none are needed where only layers are left out.
    """
    info = read_info(parent)
    config, layers = info.architecture, chosen_layers(info.architecture, derive)
    small, kept = config.model_copy(update={"layers": tuple(config.layers[i] for i in layers)}), {}
    if derive.narrows:
        _check_narrowing(config, derive)
        heads, neurons = _judged(parent, prompts)
        if derive.heads is not None:
            kept |= _kept_heads(config, heads[layers], derive.heads)
            small = small.model_copy(update={"heads": len(kept["N"][0]), "kv_heads": len(kept["K"][0])})
        if derive.intermediate is not None:
            kept["F"] = [_largest(norms, derive.intermediate) for norms in neurons[layers]]
            small = small.model_copy(update={"ffn": derive.intermediate})
    _check_config(small, derive)
    axes, stored = decoder.weight_axes(small), read_stored(parent)

    def read(path: str) -> np.ndarray:
        value, names = stored(_path_in(layers, path)), axes[path].split()
        for axis, name in enumerate(names):
            if name in kept and path.startswith("layers."):
                value = np.take(value, kept[name][int(path.split(".")[1])], axis=axis)
        return np.asarray(value).astype(decoder.loaded_type(path, dtype))

    with replacing(out) as tmp:
        tmp.mkdir(parents=True)
        copy_tokenizer([parent / "tokenizer"], tmp / "tokenizer")
        tree = nest({path: Lazy(lambda path=path: read(path)) for path in axes})
        sizes = [prod(small.sizes[name] for name in names.split()) for names in axes.values()]
        changes = {"source": origin, "revision": None, "dtype": dtype, "architecture": small, "parameters": sum(sizes)}
        changes["hf_config"] = {**info.hf_config, **config_to_hf(small)}
        student = info.model_copy(update=changes | {"digest": save_weights(tmp / "weights", tree)})
        write_info(tmp, student)
    return student


def chosen_layers(config: ModelConfig, derive: Derive) -> list[int]:
    """The teacher's layers that are kept, in order: those listed, or so many evenly, the first and the last among them.

    30 layers, 8 → 0 4 8 12 17 21 25 29
    """
    count = len(config.layers)
    if derive.layers is None:
        return list(range(count))
    if isinstance(derive.layers, int):
        if derive.layers > count:
            raise DistillError(f"derive.layers is {derive.layers}, {derive.parent} has {count}: take fewer")
        return [int(i) for i in np.round(np.linspace(0, count - 1, derive.layers))]
    if odd := [i for i in derive.layers if i >= count]:
        raise DistillError(f"derive.layers: {derive.parent} has layers 0 to {count - 1}, not {odd[0]}")
    return list(derive.layers)


def _path_in(layers: list[int], path: str) -> str:
    """Where a weight of the student lies in the teacher's tree."""
    if not path.startswith("layers."):
        return path
    _, number, rest = path.split(".", 2)
    return f"layers.{layers[int(number)]}.{rest}"


def _check_narrowing(config: ModelConfig, derive: Derive) -> None:
    if config.latent or config.experts:
        what = "latent attention" if config.latent else "experts"
        raise DistillError(f"{derive.parent} has {what}: leave out derive.heads and derive.intermediate, take layers")
    for name, asked, there in (
        ("heads", derive.heads, config.heads), ("intermediate", derive.intermediate, config.ffn)
    ):  # fmt: skip
        if asked is not None and asked > there:
            raise DistillError(f"derive.{name} is {asked}, {derive.parent} has {there}: take fewer")


def _check_config(small: ModelConfig, derive: Derive) -> None:
    if config_from_hf(config_to_hf(small)) != small:
        raise DistillError(
            f"derive.layers: family {small.family} cannot say in its config.json which of {derive.parent}'s layers "
            "these are (windows or experts come in a fixed order): keep a run of them from the first on"
        )


def _judged(parent: Path, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms of heads [L, N] and neurons [L, F] over all prompts."""
    if not prompts:
        raise DistillError("derive: heads and neurons are judged on prompts, and there are none: look at prompts")
    config, weights = load_weights(parent, dtype=jnp.float32)
    total: list[np.ndarray] = []
    order = sorted(prompts, key=len)
    for first in range(0, len(order), ROWS):
        part = order[first : first + ROWS]
        tokens = np.zeros((ROWS, -(-len(part[-1]) // BUCKET) * BUCKET), np.int32)
        for row, ids in enumerate(part):
            tokens[row, : len(ids)] = ids
        lengths = np.asarray([len(ids) for ids in part] + [0] * (ROWS - len(part)), np.int32)
        found = squared_norms(config, weights, tokens, lengths)
        total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
    return total[0], total[1]


def _largest(norms: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest, in order."""
    return np.sort(np.argsort(-norms, kind="stable")[:count])


def _kept_heads(config: ModelConfig, norms: np.ndarray, count: int) -> Kept:
    """Query heads (N) and key/value heads (K) of each layer: whole groups, or as many of every group."""
    groups, size = config.kv_heads, config.heads // config.kv_heads
    by_group = norms.reshape(len(norms), groups, size)
    if count % size == 0:
        kept = [_largest(layer.sum(axis=1), count // size) for layer in by_group]
        heads = [(groups_kept[:, None] * size + np.arange(size)).reshape(-1) for groups_kept in kept]
    elif count % groups == 0:
        kept = [np.arange(groups) for _ in by_group]
        heads = [
            np.concatenate([g * size + _largest(group, count // groups) for g, group in enumerate(layer)])
            for layer in by_group
        ]
    else:
        raise DistillError(
            f"derive.heads is {count}, the teacher's {config.heads} share {groups} key/value heads: take a multiple of "
            f"{size} (whole groups) or of {groups} (some of each)"
        )
    return {"N": heads, "K": kept}
