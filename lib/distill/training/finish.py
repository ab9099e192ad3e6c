"""The end of a run: a params folder like any model's."""

from pathlib import Path

import jax
import numpy as np

from distill.checkpoints.info import read_info, write_info
from distill.checkpoints.store import copy_tokenizer, flat, nest, save_weights, tree_digest
from distill.files import replacing
from distill.models import decoder, layouts
from distill.models.config import ModelConfig
from distill.parallel.processes import is_first, on_host, wait_for_all
from distill.training.adapters import merge
from distill.training.state import Frozen


def write_params(init: Path, folder: Path, config: ModelConfig, params: decoder.Params, frozen: Frozen | None) -> str:
    """Write `folder/params` and move it into place, adapters merged into their weights; gives its digest.

    What goes with the weights, and the type that they are stored in, is that of `init`.
    """
    info = read_info(init)
    if frozen is not None:
        params = jax.jit(merge)(frozen.weights, params, frozen.scale)
    leaves = flat({name: jax.tree.map(on_host, part) for name, part in params.items()})
    if is_first():
        tree = flat(layouts.unstack(config, nest(leaves)))
        tree = nest({path: np.asarray(x).astype(decoder.loaded_type(path, info.dtype)) for path, x in tree.items()})
        source = str(Path(*folder.parts[-3:]))  # {run}/students/{stage}, wherever the results lie
        info = info.model_copy(update={"source": source, "revision": None, "digest": tree_digest(tree)})
        with replacing(folder / "params") as tmp:
            tmp.mkdir()
            copy_tokenizer([init / "tokenizer"], tmp / "tokenizer")
            save_weights(tmp / "weights", tree)
            write_info(tmp, info)
    wait_for_all("params are written")
    return info.digest
