"""Hugging Face folder → params folder → Hugging Face folder, bit for bit."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from distill.checkpoints.hf import HfWeights, read_weight, their_tensors, write_shards
from distill.checkpoints.store import (
    ModelInfo,
    copy_tokenizer,
    flat,
    load_weights,
    nest,
    read_info,
    save_weights,
    tree_digest,
    write_info,
)
from distill.errors import DistillError
from distill.files import read_json, replacing, write_json
from distill.models import decoder
from distill.models.families import config_from_hf, config_to_hf, weight_rows
from distill.models.table import weights
from distill.text.tokenizer import load_tokenizer


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    dtype: str,
    origin: str,
    revision: str | None = None,
    tokenizer: Path | None = None,
) -> ModelInfo:
    """Import the Hugging Face folder `source` as a params folder at `out`.

    dtype: what the weights are stored as. origin, revision: recorded as where the model came from.
    tokenizer: the folder of the tokenizer, where it is not `source`.
    """
    hf = read_json(source / "config.json")
    try:
        config = config_from_hf(hf)
    except DistillError as error:
        raise DistillError(f"{origin}: {error}") from None
    found = HfWeights(source)
    table = list(weights(config, weight_rows(config), decoder.weight_axes(config)))
    theirs = {row.ours: row.theirs for row in weight_rows(config)}
    found.check(table, tied=(theirs["head"], theirs["embed"]) if config.tied else None)
    tree = nest({weight.ours: read_weight(found, weight).astype(jnp.dtype(dtype)) for weight in table})
    with replacing(out) as tmp:
        copy_tokenizer([source] if tokenizer is None else [tokenizer, source], tmp / "tokenizer")
        words = load_tokenizer(tmp / "tokenizer")
        if words.real_vocab > config.vocab_size:
            raise DistillError(
                f"{origin}: the tokenizer knows {words.real_vocab} ids, the embedding has {config.vocab_size} "
                "rows: this tokenizer belongs to another model"
            )
        save_weights(tmp / "weights", tree)
        info = ModelInfo(
            source=origin,
            revision=revision,
            dtype=dtype,
            architecture=config,
            hf_config=hf,
            parameters=sum(leaf.size for leaf in flat(tree).values()),
            vocab_size=config.vocab_size,
            real_vocab=words.real_vocab,
            eos_ids=list(words.eos_ids),
            tokenizer_hash=words.hash,
            digest=tree_digest(tree),
        )
        write_info(tmp, info)
    return info


def export_checkpoint(params: Path, out: Path) -> None:
    """Export a params folder as a Hugging Face folder that `transformers` loads."""
    info = read_info(params)
    config, tree = load_weights(params)
    leaves = flat(tree)
    table = weights(config, weight_rows(config), decoder.weight_axes(config))
    with replacing(out) as tmp:
        tmp.mkdir()
        write_shards(tmp, their_tensors(table, lambda weight: np.asarray(leaves[weight.ours])))
        for file in sorted((params / "tokenizer").iterdir()):
            shutil.copyfile(file, tmp / file.name)
        kept = {
            k: v for k, v in info.hf_config.items() if k not in ("torch_dtype", "rope_theta", "rope_scaling")
        }
        write_json(tmp / "config.json", {**kept, **config_to_hf(config), "dtype": info.dtype})
