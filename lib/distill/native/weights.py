"""A decoder's weights as this machine multiplies with them."""

from typing import Any

import jax
import jax.numpy as jnp

from distill.models.config import ModelConfig
from distill.models.decoder import Params, weight_axes
from distill.models.int8 import Int8
from distill.models.lora import sides
from distill.models.panels import Panels, fits_panels, panelled
from distill.native.library import kernels

MULTIPLIED = frozenset(["embed", "head", "q", "k", "v", "o", "q_a", "q_b", "kv_a", "k_rope", "gate", "up", "down"])
"""Weights that `layers.products` is given, where they are not an expert's."""


def for_products(config: ModelConfig, params: Params, *, own: bool = False) -> Params:
    """Unscanned weights as this machine multiplies with them: on a CPU those of `layers.products` are in panels.

    own: the weights given are not needed any more, so that no second copy of the model is held.
    """
    native = kernels()
    if native is None or params["embed"].dtype != jnp.float32:
        return params
    axes = weight_axes(config)

    def each(path: tuple[jax.tree_util.DictKey, ...], leaf: Any) -> Any:
        names = [key.key for key in path]
        if isinstance(leaf, Panels) or names[-1] not in MULTIPLIED or "experts" in names:
            return leaf
        taken = len(sides(axes[".".join(names)])[2])
        if not fits_panels(leaf, taken):
            return leaf
        panels = jax.block_until_ready(panelled(leaf, taken, native.distill_panel()))
        if own:
            jax.tree.map(lambda array: array.delete(), leaf)
        return panels

    return jax.tree_util.tree_map_with_path(each, params, is_leaf=lambda leaf: isinstance(leaf, Int8 | Panels))
