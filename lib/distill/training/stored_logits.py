"""Losses against logits that a teacher stored: k ids of a position with their log-probabilities, and no more."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill.models.layers import at_least_float32
from distill.training.losses import Sums, masked_sum


def bucket_kl(p: Float[Array, "... k"], q: Float[Array, "... k"]) -> Float[Array, "..."]:
    """KL(teacher, student) of k ids and one bucket for all others, from the log-probabilities of the k.

    Σ p log p/q + p₀ log p₀/q₀ with p₀ = 1 − Σ p and q₀ = 1 − Σ q: at most the KL of the whole vocabulary, and equal to
    it where k is all of it. Dividing p and q by their sums instead would say nothing of how much lies outside.
    """
    least = 8 * jnp.finfo(q.dtype).eps
    mass = jnp.exp(p)
    rest = jnp.maximum(1 - jnp.sum(mass, axis=-1), 0)  # float16 may bring the k over 1
    outside = 1 - jnp.sum(jnp.exp(q), axis=-1)
    # What the student leaves outside may be lost to rounding: its value stops at `least`, its slope stays.
    outside = outside + jax.lax.stop_gradient(jnp.maximum(outside, least) - outside)
    tail = jnp.where(rest > 0, rest * (jnp.log(jnp.maximum(rest, least)) - jnp.log(outside)), 0)
    return jnp.sum(mass * (p - q), axis=-1) + tail


def sampled_kl(p: Float[Array, "... n"], q: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Mean of log p/q over n ids drawn from the teacher with replacement: an unbiased estimate of KL(teacher, student).

    Its slope is that of the cross-entropy with the draws' shares as the target (Sparse Logit Sampling, arXiv
    2503.16870, at its proposal of temperature 1, where the weights of the draws are equal).
    """
    return jnp.mean(p - q, axis=-1)


KL = {"topk": bucket_kl, "sampled": sampled_kl}


def stored_sums(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Float[Array, "B T"],
    ids: Int[Array, "B T k"],
    logprobs: Float[Array, "B T k"],
    estimator: str,
    alpha: Any,
    z_loss: float = 0.0,
) -> Sums:
    """α KL + (1 − α) (NLL + z_loss log² Z). One normaliser and one gather serve both."""
    logits = logits.astype(at_least_float32(logits))
    there = mask[..., None] > 0  # under the mask may be anything, and 0 · NaN in a gradient is NaN
    ids = jnp.concatenate([targets[..., None], jnp.where(there, ids, 0).astype(targets.dtype)], axis=-1)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    scores = jnp.take_along_axis(logits, ids, axis=-1)
    q = scores - normaliser[..., None]
    p = jnp.where(there, logprobs, 0).astype(logits.dtype)
    nll = -q[..., 0]
    divergence = KL[estimator](p, q[..., 1:])
    correct = (scores[..., 0] >= jnp.max(logits, axis=-1)).astype(nll.dtype)
    plain = nll + z_loss * normaliser**2 if z_loss else nll
    loss = alpha * divergence + (1 - alpha) * plain
    return Sums(*(masked_sum(values, mask)[0] for values in (loss, nll, correct, divergence)))
