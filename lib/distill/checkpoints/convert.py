"""Hugging Face folder → params folder → Hugging Face folder, a tensor at a time and bit for bit."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill.checkpoints.hf import plan_of, read_weight, their_tensors, write_shards
from distill.checkpoints.info import ModelInfo, read_info, write_info
from distill.checkpoints.source import HfWeights, read_config
from distill.checkpoints.store import (
    Lazy,
    copy_tokenizer,
    nest,
    read_stored,
    save_weights,
    sharding_of,
)
from distill.errors import DistillError
from distill.files import replacing, write_json
from distill.models import decoder, layouts
from distill.models.config import ModelConfig
from distill.models.families import config_from_hf, config_to_hf, left_out, weight_rows
from distill.models.table import Weight, weights
from distill.text.chat import render
from distill.text.template import give_template
from distill.text.tokenizer import is_plain, load_tokenizer

QUESTION = [{"role": "user", "content": "a question"}]
T = TypeVar("T")


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    dtype: str,
    origin: str,
    revision: str | None = None,
    tokenizer: Path | None = None,
    chat_template: str | None = None,
) -> ModelInfo:
    """Import the Hugging Face folder `source` as a params folder at `out`.

    dtype: what the weights are stored as. origin, revision: recorded as where the model came from.
    tokenizer: the folder of the tokenizer, where it is not `source`. chat_template: Jinja text in place of its own.
    """
    hf, config, found, table = _checked(source, origin)
    with replacing(out) as tmp:
        copy_tokenizer([source] if tokenizer is None else [tokenizer, source], tmp / "tokenizer")
        if chat_template is not None:
            give_template(tmp / "tokenizer", chat_template)
        words = load_tokenizer(tmp / "tokenizer")
        if chat_template is not None and "a question" not in render(words, QUESTION, ask=True):
            raise DistillError(f"{origin}: the chat template leaves out what a user says: check it, or take another")
        if words.real_vocab > config.vocab_size:
            raise DistillError(
                f"{origin}: the tokenizer knows {words.real_vocab} ids, the embedding has "
                f"{config.vocab_size} rows: this tokenizer belongs to another model"
            )

        def later(weight: Weight) -> Lazy:
            kind = None if decoder.keeps_type(weight.ours) else jnp.dtype(dtype)
            return Lazy(lambda: read_weight(found, weight, dtype=kind))

        digest = save_weights(tmp / "weights", nest({weight.ours: later(weight) for weight in table}))
        info = ModelInfo(
            source=origin,
            revision=revision,
            dtype=dtype,
            architecture=config,
            hf_config=hf,
            parameters=sum(prod(weight.shape) for weight in table),
            vocab_size=config.vocab_size,
            real_vocab=words.real_vocab,
            eos_ids=list(words.eos_ids),
            tokenizer_hash=words.hash,
            plain_tokenizer=is_plain(words),
            digest=digest,
        )
        write_info(tmp, info)
    return info


def load_checkpoint(
    source: Path, *, dtype: str, mesh: Mesh | None = None, scanned: bool = False
) -> tuple[ModelConfig, decoder.Params]:
    """The weights of the Hugging Face folder `source` in memory; neither tokenizer nor params folder needed.

    mesh: where the weights go by their named axes, each device reading its part of each tensor alone; the
    first device by default. scanned: stack the layers for training.
    """
    _, config, found, table = _checked(source, str(source))

    def load(weight: Weight) -> jax.Array:
        sharding = sharding_of(mesh, " ".join(weight.axes), weight.shape)
        kind = decoder.loaded_type(weight.ours, dtype)
        read = lambda index: read_weight(found, weight, index, kind)  # noqa: E731
        return jax.make_array_from_callback(weight.shape, sharding, read)

    tree = nest({weight.ours: load(weight) for weight in table})
    return config, layouts.stack(config, tree) if scanned else tree


def export_checkpoint(params: Path, out: Path) -> None:
    """Export a params folder as a Hugging Face folder that `transformers` loads."""
    info = read_info(params)
    config, stored = info.architecture, read_stored(params)
    table = _table(config)
    with replacing(out) as tmp:
        tmp.mkdir()
        tensors = their_tensors(table, lambda weight: stored(weight.ours))
        kept = {weight.ours: stored(weight.ours).dtype for weight in table if decoder.keeps_type(weight.ours)}
        write_shards(tmp, _ahead(tensors), plan_of(table, jnp.dtype(info.dtype), kept))
        for file in sorted((params / "tokenizer").iterdir()):
            shutil.copyfile(file, tmp / file.name)
        write_json(tmp / "config.json", _config_json(info))


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is read while the last one is written."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _config_json(info: ModelInfo) -> dict[str, Any]:
    """The source's own `config.json` where it says what ours would: then any reader of it reads this one."""
    ours, theirs = config_to_hf(info.architecture), info.hf_config
    dropped = {"torch_dtype", "auto_map", "quantization_config"}  # auto_map names code that is not here
    if theirs["architectures"] != ours["architectures"] or config_from_hf(theirs) != info.architecture:
        dropped |= {"rope_theta", "rope_scaling"}
        theirs = {**theirs, **ours}
    return {k: v for k, v in theirs.items() if k not in dropped} | {"dtype": info.dtype}


def _checked(source: Path, origin: str) -> tuple[dict[str, Any], ModelConfig, HfWeights, list[Weight]]:
    """config.json, what it describes, and the tensors, which are those that it asks for."""
    hf = read_config(source)
    try:
        config = config_from_hf(hf)
    except DistillError as error:
        raise DistillError(f"{origin}: {error}") from None
    found, table = HfWeights(source), _table(config)
    head = {row.ours: row.theirs for row in weight_rows(config)}
    tied = (head["head"], head["embed"]) if config.tied and "head" in head else None
    found.check(table, tied=tied, left_out=left_out(hf, config))
    return hf, config, found, table


def _table(config: ModelConfig) -> list[Weight]:
    return list(weights(config, weight_rows(config), decoder.weight_axes(config)))
