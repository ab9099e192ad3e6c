"""From one layout of a decoder's weights to the other: scanned for training, unscanned for decoding."""

import jax
import jax.numpy as jnp

from distill.models.config import ModelConfig
from distill.models.decoder import Params


def stack(config: ModelConfig, params: Params) -> Params:
    """Unscanned to scanned, a weight at a time; `params` is emptied on the way, so no second copy is held."""
    layers, stacks = params.pop("layers"), {}
    for s, (start, stop) in enumerate(config.stacks):
        blocks = [jax.tree.flatten(layers.pop(str(i))) for i in range(start, stop)]
        tree, columns = blocks[0][1], [leaves for leaves, _ in blocks]
        stacked = []
        for j in range(tree.num_leaves):
            stacked.append(jax.block_until_ready(jnp.stack([column[j] for column in columns])))
            for column in columns:
                column[j] = None
        stacks[str(s)] = jax.tree.unflatten(tree, stacked)
    return {**params, "stacks": stacks}


def unstack(config: ModelConfig, params: Params) -> Params:
    """Scanned to unscanned."""
    layers = {}
    for s, (start, stop) in enumerate(config.stacks):
        for i in range(start, stop):
            layers[str(i)] = jax.tree.map(lambda a, j=i - start: a[j], params["stacks"][str(s)])
    return {**{k: v for k, v in params.items() if k != "stacks"}, "layers": layers}
