"""How far teacher and student are apart where each has tokens of its own, over spans of equal text.

Both see the same text before a span. What comes next is then told by events that both know: the classes of
`text/spelling.py` (`Shared`), a class being all tokens that begin alike; and, where a span takes a side several
tokens, the span itself, with the product of their probabilities. A divergence over events that lump others together is
at most that over the whole, and zero where the two agree.

Approximate, since a token stands for the texts that its tokenizer writes with it: `Par` of a teacher that has
`Paris` too is seldom followed by `is`. Spans whose probabilities are those of chunks of text are the likelihoods of
ALM (arXiv 2503.20083) and the merged probabilities of GOLD (TRL); ULD (arXiv 2402.12030) sorts both sides instead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distill.data.aligned import MANY, ONE
from distill.models.layers import at_least_float32
from distill.text.spelling import Classes
from distill.training.divergences import Divergence
from distill.training.losses import Parts, Score, chunked_values


class Told(NamedTuple):
    """One side on the next token: log-probability of each class, and the logits over T with their normaliser."""

    classes: Float[Array, "B T C"]
    logits: Float[Array, "B T V"]
    normaliser: Float[Array, "B T"]

    def of(self, targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """Log-probability of given tokens."""
        return jnp.take_along_axis(self.logits, targets[..., None], axis=-1)[..., 0] - self.normaliser


def told(logits: Float[Array, "B T V"], side: Classes, temperature: Any) -> Told:
    """What the scores of one side come to. Tokens without a class have no part in it, as rows without a token have."""
    logits, normaliser, _ = _normalised(logits, side, temperature)
    classes = logits[..., side.roots] - normaliser[..., None]
    if len(side.others):
        mass = jnp.exp(logits[..., side.others] - normaliser[..., None])
        rest = jnp.zeros(classes.shape, classes.dtype).at[..., side.of[side.others]].add(mass)
        least = jnp.finfo(rest.dtype).tiny
        has = np.zeros(len(side.roots), bool)
        has[side.of[side.others]] = True
        classes = jnp.where(has[None, None], jnp.logaddexp(classes, jnp.log(jnp.maximum(rest, least))), classes)
    return Told(classes, logits, normaliser)


def of_targets(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], side: Classes, temperature: Any
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probabilities of given tokens, and of all of their class."""
    logits, normaliser, of = _normalised(logits, side, temperature)
    own = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - normaliser
    same = of[None, None] == of[targets][..., None]
    return own, jax.nn.logsumexp(jnp.where(same, logits, -jnp.inf), axis=-1) - normaliser


def _normalised(logits: Array, side: Classes, temperature: Any) -> tuple[Array, Array, Array]:
    """Logits over T, −inf where a token has no class; log Σ exp of them; the class of each row of the vocabulary."""
    of = np.full(logits.shape[-1], -1, np.int32)
    of[: len(side.of)] = side.of
    logits = logits.astype(at_least_float32(logits)) / temperature
    logits = jnp.where(of[None, None] >= 0, logits, -jnp.inf)
    return logits, jax.nn.logsumexp(logits, axis=-1), jnp.asarray(of)


class Chains(NamedTuple):
    """Of the span that a target is of: the log-probability of its tokens, one after the other; and that of all that
    begins like its first token."""

    own: Float[Array, "B T"]
    alike: Float[Array, "B T"]


def chains(
    score: Score, hidden: Array, head: Array, targets: Int[Array, "B T"], spans: Int[Array, "B T"], side: Classes,
    temperature: Any, into: Int[Array, "B U"], chunk: int | None,
) -> Chains:  # fmt: skip
    """One side's chains, without a gradient, for each of the positions whose spans are `into`.

    spans: for each of this side's positions the number of the span that its target is of, 0 where it is of none.
    """
    inside = spans > 0
    parts = {"targets": jnp.where(inside, targets, int(side.roots[0])), "inside": inside}
    hidden = jnp.where(inside[..., None], hidden, 0)

    def values(logits: Array, part: Parts) -> tuple[Array, Array]:
        return of_targets(logits, part["targets"], side, temperature)

    own, alike = chunked_values(score, values, hidden, head, parts, chunk)
    first = inside & (spans != jnp.pad(spans, ((0, 0), (1, 0)))[:, :-1])
    rows, most = jnp.arange(len(spans))[:, None], max(spans.shape[1], into.shape[1]) + 1

    def summed(values: Array, where: Array) -> Array:
        return jnp.zeros((len(spans), most), values.dtype).at[rows, spans].add(jnp.where(where, values, 0))[rows, into]

    return Chains(summed(own, inside), summed(alike, first))


def apart(
    teacher: Told, student: Told, parts: Parts, side: Classes, divergence: Divergence
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The divergence of each span, where it begins; and what of its gradient belongs to a later token's, its value 0.

    parts: of `data.loader.spans`, with targets and both sides' `Chains`. A span of one token a side is told by the
    classes; one of more by the classes too, with the span apart from what else begins like it; one whose first tokens
    are not alike by itself and all that is not it.
    """
    kind, begins = parts["span_kind"], parts["span_begins"] > 0
    many, longer = kind == MANY, kind >= MANY
    own = student.of(jnp.where(kind > 0, parts["targets"], int(side.roots[0])))
    moving = parts["student_chain"] + own - jax.lax.stop_gradient(own)  # the sum's value, and this token's slope
    star = jnp.asarray(side.of)[parts["targets"]]
    alike = jnp.take_along_axis(student.classes, star[..., None], axis=-1)[..., 0]
    alike = jnp.where(begins, alike, parts["student_alike"])
    p = _split(parts["teacher_chain"], parts["teacher_alike"], many, longer)
    q = _split(moving, alike, many, longer)
    split = divergence(p[..., :2], q[..., :2])
    whole = divergence(p[..., 2:], q[..., 2:])
    classes = divergence(teacher.classes, student.classes)
    value = jnp.where(kind == ONE, classes, jnp.where(many, classes - whole + split, split))
    later = split - jax.lax.stop_gradient(split)
    zero = jnp.zeros_like(value)
    return jnp.where(begins & (kind > 0), value, zero), jnp.where(longer & ~begins, later, zero)


def _split(chain: Array, alike: Array, many: Array, longer: Array) -> Float[Array, "B T 3"]:
    """Log-probabilities of a span, of what else there is, and of both together: all that begins like the span, or
    anything where first tokens are not alike (`APART`)."""
    chain = jnp.where(longer, chain, -1.0)
    both = jnp.where(many, jnp.where(longer, alike, 0.0), 0.0)
    least = 8 * jnp.finfo(chain.dtype).eps
    rest = -jnp.expm1(chain - both)
    # What is left beside the span may be lost to rounding: its value stops at `least`, its slope stays.
    rest = rest + jax.lax.stop_gradient(jnp.maximum(rest, least) - rest)
    return jnp.stack([chain, both + jnp.log(rest), both], axis=-1)
