"""How strongly each attention head and each neuron of a dense feed-forward network speaks, on given text."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distill.models import decoder
from distill.models.attention import causal_mask
from distill.models.config import ModelConfig
from distill.models.rope import rotation, sequence_lengths


def squared_norms(
    config: ModelConfig, params: decoder.Params, tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, "B"]
) -> tuple[Float[np.ndarray, "L N"], Float[np.ndarray, "L F"]]:
    """Sums over the tokens of right-padded rows: of each head's output squared, and of what each neuron gives to the
    projection down, squared. params: unscanned; layers without experts or latent attention only."""
    return tuple(np.asarray(norms, np.float64) for norms in _norms(config, params, tokens, lengths))


@partial(jax.jit, static_argnums=0)
def _norms(config: ModelConfig, params: decoder.Params, tokens: Array, lengths: Array) -> tuple[Array, Array]:
    segments = (jnp.arange(tokens.shape[1])[None] < lengths[:, None]).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    same = segments[:, :, None] == segments[:, None, :]
    turns = [rotation(rope, positions, sequence_lengths(positions, same)) for rope in config.ropes]
    x, heads, neurons = decoder.embedded(config, params, tokens), [], []

    def total(values: Array) -> Array:
        return jnp.einsum("BTX,BT->X", values.astype(jnp.float32) ** 2, segments.astype(jnp.float32))

    for i, layer in enumerate(config.layers):
        block, mask = decoder.block(config, layer, params["layers"][str(i)]), causal_mask(segments, layer.window)
        spoken = block.attention.spoken(block.attention_norm(x), turns[layer.rope], mask)
        heads.append(jnp.sum(total(spoken.reshape(*tokens.shape, -1)).reshape(config.heads, -1), axis=1))
        y = block.attention(block.attention_norm(x), turns[layer.rope], mask)[0]
        after = x + (y if block.attention_post_norm is None else block.attention_post_norm(y))
        neurons.append(total(block.ffn.inner(block.ffn_norm(after))))
        x = block(x, turns[layer.rope], mask)[0]
    return jnp.stack(heads), jnp.stack(neurons)
