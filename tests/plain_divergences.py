"""Each divergence directly, of probabilities; what else it takes; and the scores of a head."""

import jax
import jax.numpy as jnp
import numpy as np

DIVERGENCES = {
    "forward_kl": lambda p, q: np.sum(p * np.log(p / q), -1),
    "reverse_kl": lambda p, q: np.sum(q * np.log(q / p), -1),
    "jsd": lambda p, q: (
        0.3 * DIVERGENCES["forward_kl"](p, 0.3 * p + 0.7 * q) + 0.7 * DIVERGENCES["forward_kl"](q, 0.3 * p + 0.7 * q)
    ),
    "skew_forward": lambda p, q: DIVERGENCES["forward_kl"](p, 0.2 * p + 0.8 * q),
    "skew_reverse": lambda p, q: DIVERGENCES["forward_kl"](q, 0.2 * q + 0.8 * p),
    "total_variation": lambda p, q: np.abs(p - q).sum(-1) / 2,
}
OWN = {"jsd": {"beta": 0.3}, "skew_forward": {"skew": 0.2}, "skew_reverse": {"skew": 0.2}}


def score(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.einsum("BTD,VD->BTV", hidden, head)
