"""Losses against stored logits: a direct float64 computation, finite differences, what lies under the mask."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import QUICKLY

from distill.config.stages import Stage
from distill.training.losses import chunked_sums
from distill.training.objectives import objective_of
from distill.training.stored_logits import bucket_kl, sampled_kl

REAL, ROWS, K = 9, 13, 4
compiled = partial(jax.jit, compiler_options=QUICKLY)


def score(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.einsum("BTD,VD->BTV", hidden, head)


class Case:
    """Hidden states and a head of 13 rows, 9 of them real, in float64; a teacher's distribution over the 9."""

    def __init__(self, kind: str, k: int = K):
        rng = np.random.default_rng(0)
        self.hidden, self.head = rng.normal(0, 1.5, (2, 5, 4)), rng.normal(0, 1.5, (ROWS, 4))
        self.p = rng.dirichlet(np.full(REAL, 0.4), (2, 5))
        if kind == "topk":
            ids = np.argsort(-self.p, axis=-1)[..., :k]
        else:
            ids = np.stack([rng.choice(REAL, k, p=p) for p in self.p.reshape(-1, REAL)]).reshape(2, 5, k)
        self.batch = {
            "targets": rng.integers(0, REAL, (2, 5)), "mask": np.asarray([[0, 1, 1, 1, 0], [1, 0, 1, 1, 1.0]]),
            "soft_ids": ids.astype(np.uint16), "soft_logprobs": np.log(np.take_along_axis(self.p, ids, -1)),
            "soft_vocabulary": np.full(2, REAL),
        }  # fmt: skip
        self.stage = Stage(init="-", steps=9, objective="topk_logits", alpha=0.7, k=k, estimator=kind)

    @property
    def q(self) -> np.ndarray:
        power = np.exp((self.hidden @ self.head.T)[..., :REAL])
        return power / power.sum(-1, keepdims=True)

    def total(self, hidden: Any, head: Any, chunk: int | None = None) -> jax.Array:
        loss, parts, constants = objective_of(self.stage, self.batch, {})
        return chunked_sums(score, loss, hidden, head, parts, constants, chunk)

    def slope(self, chunk: int | None = None) -> tuple:
        value = lambda hidden, head: self.total(hidden, head, chunk).loss  # noqa: E731
        return compiled(jax.value_and_grad(value, argnums=(0, 1)))(self.hidden, self.head)


def buckets(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL of distributions [..., k + 1], the last entry being the rest."""
    return np.sum(p * np.log(p / q), axis=-1)


def with_rest(p: np.ndarray) -> np.ndarray:
    return np.concatenate([p, 1 - p.sum(-1, keepdims=True)], axis=-1)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_loss_and_gradient_are_those_of_the_formula_in_float64(kind: str) -> None:
    with jax.enable_x64(True):
        case = Case(kind)
        ids, mask = case.batch["soft_ids"].astype(int), case.batch["mask"]
        p, q = (np.take_along_axis(side, ids, -1) for side in (case.p, case.q))
        kl = buckets(with_rest(p), with_rest(q)) if kind == "topk" else np.mean(np.log(p / q), -1)
        nll = -np.log(np.take_along_axis(case.q, case.batch["targets"][..., None], -1)[..., 0])
        sums = case.total(case.hidden, case.head)
        wanted = {"loss": 0.7 * kl + 0.3 * nll, "nll": nll, "divergence": kl}
        for name, values in wanted.items():
            assert float(getattr(sums, name)) == pytest.approx(float((values * mask).sum()), abs=1e-10), name
        value, slopes = case.slope()
        assert float(value) == pytest.approx(float(sums.loss), abs=1e-10)
        for which, along in enumerate(slopes):
            at = [case.hidden, case.head]
            for index in [(0, 1, 2), (1, 4, 0)] if which == 0 else [(0, 0), (8, 3), (11, 1)]:
                ends = []
                for step in (1e-5, -1e-5):
                    moved = [x.copy() for x in at]
                    moved[which][index] += step
                    ends.append(float(case.total(*moved).loss))
                assert float(along[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)
        for chunk in (1, 2):
            other, others = case.slope(chunk)
            assert float(other) == pytest.approx(float(value), abs=1e-9)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), others, slopes)


def test_all_of_the_vocabulary_is_the_full_kl() -> None:
    with jax.enable_x64(True):
        case = Case("topk", REAL)
        full = np.sum(case.p * np.log(case.p / case.q), -1)
        sums = case.total(case.hidden, case.head)
        assert float(sums.divergence) == pytest.approx(float((full * case.batch["mask"]).sum()), abs=1e-9)


def test_the_rest_is_a_bucket_and_is_not_normalised_away() -> None:
    """Teacher and student agree about the two ids among themselves; one leaves half of the mass outside."""
    p, q = jnp.log(jnp.asarray([0.6, 0.3])), jnp.log(jnp.asarray([0.3, 0.15]))
    wanted = 0.9 * np.log(2) + 0.1 * np.log(0.1 / 0.55)
    assert float(bucket_kl(p, q)) == pytest.approx(wanted, abs=1e-6)
    renormalised = [np.exp(side) / np.exp(side).sum() for side in (p, q)]
    assert np.sum(renormalised[0] * np.log(renormalised[0] / renormalised[1])) == pytest.approx(0, abs=1e-6)
    assert float(bucket_kl(q, p)) != pytest.approx(wanted, abs=0.1)  # the direction


def test_a_student_that_leaves_nothing_outside_is_pulled_back() -> None:
    """The teacher has a tenth outside; float32 has lost what the student has there."""
    logits = jnp.asarray([30.0, 29.0, 0.0, 0.0])
    p = jnp.log(jnp.asarray([0.6, 0.3]))
    value, slope = jax.value_and_grad(lambda z: bucket_kl(p, jax.nn.log_softmax(z)[:2]))(logits)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    assert slope[0] > 0
    assert float(bucket_kl(p, jnp.log(jnp.asarray([0.62, 0.31])))) < value


def test_draws_are_an_unbiased_estimate() -> None:
    """Their mean over many is the KL, to four standard errors; so is their slope, which the k likeliest alone miss."""
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.full(50, 0.5)), rng.dirichlet(np.full(50, 2.0))
    ids = rng.choice(50, (4000, 8), p=p)
    found = np.asarray(sampled_kl(jnp.log(jnp.asarray(p[ids])), jnp.log(jnp.asarray(q[ids]))))
    assert abs(found.mean() - np.sum(p * np.log(p / q))) < 4 * found.std() / np.sqrt(len(found))
    logits = jnp.log(jnp.asarray(q))
    slope = jax.grad(lambda z: sampled_kl(jnp.log(jnp.asarray(p[ids])), jax.nn.log_softmax(z)[ids]).mean())(logits)
    assert np.abs(np.asarray(slope) - (q - p)).max() < 4 * np.sqrt(p.max() / ids.size)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_under_the_mask_may_be_anything(kind: str) -> None:
    case = Case(kind)
    value, slopes = case.slope()
    under = case.batch["mask"] == 0
    case.batch["soft_logprobs"][under], case.batch["soft_ids"][under] = np.nan, 65_535
    other, others = case.slope()
    assert float(other) == float(value)
    jax.tree.map(np.testing.assert_array_equal, others, slopes)


def test_float16_logprobs_over_one_in_sum_are_no_less_than_nothing() -> None:
    p = jnp.asarray(np.float16(np.log([0.5001, 0.5001])), jnp.float32)
    q = jnp.log(jnp.asarray([0.5, 0.5]))
    assert abs(float(bucket_kl(p, q))) < 1e-3
