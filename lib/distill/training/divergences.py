"""How far two distributions over the vocabulary are apart, in nats a token.

Each takes log-probabilities, the teacher's p first and the student's q second, whatever its direction; products
with a probability that is zero are zero, since log-probabilities of real scores are finite.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.models.layers import at_least_float32

LogProbs = Float[Array, "... V"]
Divergence = Callable[[LogProbs, LogProbs], Float[Array, "..."]]


def log_probs(logits: Float[Array, "... V"], temperature: Any, real_vocab: int) -> LogProbs:
    """log softmax(logits / T) over the first `real_vocab` rows: those behind are padding and have no part in it."""
    logits = logits[..., :real_vocab].astype(at_least_float32(logits))
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def kl(p: LogProbs, q: LogProbs) -> Float[Array, "..."]:
    """KL(p ‖ q) = Σ p (log p − log q)."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def forward_kl(teacher: LogProbs, student: LogProbs) -> Float[Array, "..."]:
    """KL(p ‖ q): the student must cover all that the teacher might say."""
    return kl(teacher, student)


def reverse_kl(teacher: LogProbs, student: LogProbs) -> Float[Array, "..."]:
    """KL(q ‖ p): the student must say nothing that the teacher would not (MiniLLM, arXiv 2306.08543)."""
    return kl(student, teacher)


def jsd(teacher: LogProbs, student: LogProbs, beta: Any) -> Float[Array, "..."]:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q (GKD, arXiv 2306.13649, equation 1)."""
    middle = mixed(teacher, student, beta)
    return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)


def skew_forward(teacher: LogProbs, student: LogProbs, skew: float) -> Float[Array, "..."]:
    """KL(p ‖ λ p + (1 − λ) q) (DistiLLM, arXiv 2402.03898, section 3.1)."""
    return kl(teacher, mixed(teacher, student, skew))


def skew_reverse(teacher: LogProbs, student: LogProbs, skew: float) -> Float[Array, "..."]:
    """KL(q ‖ λ q + (1 − λ) p), of the same paper."""
    return kl(student, mixed(student, teacher, skew))


def total_variation(teacher: LogProbs, student: LogProbs) -> Float[Array, "..."]:
    """½ Σ |p − q|, between 0 and 1."""
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(teacher) - jnp.exp(student)), axis=-1)


def mixed(one: LogProbs, other: LogProbs, share: Any) -> LogProbs:
    """log(share · one + (1 − share) · other)."""
    return jnp.logaddexp(one + jnp.log(share), other + jnp.log1p(-share))


def divergence_of(name: str, beta: Any, skew: float) -> Divergence:
    """The divergence of that name, with the coefficient that it has."""
    return {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": partial(jsd, beta=beta),
        "skew_forward": partial(skew_forward, skew=skew),
        "skew_reverse": partial(skew_reverse, skew=skew),
        "total_variation": total_variation,
    }[name]
