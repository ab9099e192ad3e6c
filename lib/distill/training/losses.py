"""Losses. Each gives a sum and a count apart, so that averaging happens once, over the global batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_nll(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """−log p(target) in nats, float32: logsumexp(logits) − logits[target]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def masked_sum(values: Float[Array, "B T"], mask: Float[Array, "B T"]) -> tuple[Array, Array]:
    """Sum over the tokens that count, and their number. Under the mask may be anything, NaN included."""
    return jnp.sum(jnp.where(mask > 0, values * mask, 0.0)), jnp.sum(mask)
