"""The teacher's logits as targets: each loss against a direct float64 computation, and what must not change it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_models import QUICKLY
from plain_divergences import DIVERGENCES, OWN, score
from tiny_models import tiny_config
from tiny_training import CONFIG, PARAMS, assert_close, batch, fresh

from distill.config.stages import Stage
from distill.config.training import Schedule
from distill.models import decoder, layouts
from distill.models.families import config_from_hf
from distill.models.int8 import quantize_weights
from distill.parallel.mesh import make_mesh
from distill.training.divergences import (
    forward_kl,
    jsd,
    log_probs,
    reverse_kl,
    skew_forward,
    skew_reverse,
    total_variation,
)
from distill.training.losses import chunked_sums
from distill.training.objectives import objective_of, scheduled
from distill.training.state import State, param_shardings
from distill.training.step import gradient as slopes
from distill.training.step import make_step, mean_loss
from distill.training.teacher import Teacher, View

WIDE = config_from_hf(tiny_config(vocab_size=44, hidden_size=16, intermediate_size=24))
TEACHER = Teacher(WIDE, layouts.stack(WIDE, decoder.init(WIDE, jax.random.key(7))), 35)
compiled = partial(jax.jit, compiler_options=QUICKLY)


def stage(**changes) -> Stage:
    return Stage(**{"init": "-", "steps": 10, "objective": "logits"} | changes)


class Case:
    """Hidden states and heads at random, in float64: a student of 13 rows, a teacher of 11, 9 of them real."""

    def __init__(self, dtype=np.float64):
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.normal(0, 1.5, shape).astype(dtype)  # noqa: E731
        self.hidden, self.head = normal(2, 5, 4), normal(13, 4)
        self.view = View(score, normal(2, 5, 3), normal(11, 3), 9)
        self.batch = {"targets": rng.integers(0, 9, (2, 5)), "mask": np.asarray([[0, 1, 1, 1, 0], [1, 0, 1, 1, 1.0]])}

    def total(self, settings: Stage, hidden, head, chunk: int | None = None, **numbers: float) -> jax.Array:
        loss, parts, constants = objective_of(settings, self.batch, numbers, self.view)
        return chunked_sums(score, loss, hidden, head, parts, constants, chunk)

    def slope(self, settings: Stage, chunk: int | None = None) -> tuple:
        value = lambda hidden, head: self.total(settings, hidden, head, chunk).loss  # noqa: E731
        return compiled(jax.value_and_grad(value, argnums=(0, 1)))(self.hidden, self.head)

    def probabilities(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Of teacher and student, over the tokens that are real."""
        sides = ((self.view.hidden, self.view.head), (self.hidden, self.head))
        powers = [np.exp((h @ w.T)[..., :9] / temperature) for h, w in sides]
        return tuple(power / power.sum(-1, keepdims=True) for power in powers)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_loss_and_gradient_are_those_of_the_formula_in_float64(name: str) -> None:
    """α T² D + (1 − α) NLL, computed directly; its slope by central differences."""
    case, settings = Case(), stage(divergence=name, alpha=0.7, temperature=1.7, **OWN.get(name, {}))
    mask = case.batch["mask"]
    apart = (DIVERGENCES[name](*case.probabilities(1.7)) * mask).sum()
    scores = case.hidden @ case.head.T
    chosen = np.take_along_axis(scores, case.batch["targets"][..., None], -1)[..., 0]
    nll = ((np.log(np.exp(scores).sum(-1)) - chosen) * mask).sum()
    along = [np.random.default_rng(1).normal(size=a.shape) for a in (case.hidden, case.head)]
    with jax.enable_x64(True):
        found = case.total(settings, case.hidden, case.head)
        assert float(found.divergence) == pytest.approx(apart, rel=1e-10)
        assert float(found.nll) == pytest.approx(nll, rel=1e-10)
        assert float(found.loss) == pytest.approx(0.7 * 1.7**2 * apart + 0.3 * nll, rel=1e-10)
        _, slope = case.slope(settings, 2)
        moved = [case.total(settings, case.hidden + t * along[0], case.head + t * along[1]).loss for t in (1e-6, -1e-6)]
        wanted = float(moved[0] - moved[1]) / 2e-6
        assert sum(float((s * a).sum()) for s, a in zip(slope, along, strict=True)) == pytest.approx(wanted, rel=1e-6)


def test_which_way_a_divergence_looks() -> None:
    """A teacher of two minds, a student of one: dear forward, where it covers half; cheap in reverse."""
    p, q = (jnp.log(jnp.asarray(side)) for side in ([0.5, 0.5, 1e-9], [0.98, 1e-6, 0.02]))
    torn, sure = [0.5, 0.5], [0.9, 0.1]
    one, two = jnp.log(jnp.asarray(torn)), jnp.log(jnp.asarray(sure))
    assert float(forward_kl(one, two)) == pytest.approx(0.510826, abs=1e-6)
    assert float(reverse_kl(one, two)) == pytest.approx(0.368064, abs=1e-6)
    assert float(forward_kl(p, q)) > float(reverse_kl(p, q)) + 2
    assert float(jsd(one, two, 1e-4)) / 1e-4 == pytest.approx(0.510826, rel=1e-2)  # forward at the low end
    assert float(skew_forward(one, two, 1e-6)) == pytest.approx(0.510826, abs=1e-4)
    assert float(skew_reverse(one, two, 1e-6)) == pytest.approx(0.368064, abs=1e-4)
    assert float(total_variation(one, two)) == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_nothing_under_the_mask_and_no_chunk_is_seen(name: str) -> None:
    case, settings = Case(np.float32), stage(divergence=name, alpha=0.5, temperature=2.0)
    whole, tokens = case.slope(settings), case.batch["mask"].sum()
    for chunk in (1, 2, 3):
        means = (jax.tree.map(lambda total: total / tokens, sums) for sums in (case.slope(settings, chunk), whole))
        assert_close(*means, atol=1e-6)
    hidden = case.view.hidden.copy()
    hidden[case.batch["mask"] == 0] = np.nan
    case.view = case.view._replace(hidden=hidden)
    case.batch["targets"][case.batch["mask"] == 0] = 12
    assert_close(case.slope(settings), whole, atol=0)


def test_thousands_of_chunks_add_up_like_one() -> None:
    """The mean to 1e-6: sums in float32, one chunk after the other, are off by more."""
    rng, shape = np.random.default_rng(0), (1, 4096)
    normal = lambda *size: jnp.asarray(rng.normal(0, 1.5, size), jnp.float32)  # noqa: E731
    hidden, head, view = normal(*shape, 4), normal(9, 4), View(score, normal(*shape, 3), normal(9, 3), 9)
    data = {"targets": rng.integers(0, 9, shape), "mask": np.ones(shape, np.float32)}

    def mean(hidden: jax.Array, chunk: int) -> jax.Array:
        loss, parts, constants = objective_of(stage(alpha=0.5), data, {}, view)
        return chunked_sums(score, loss, hidden, head, parts, constants, chunk).loss / hidden.shape[1]

    whole = compiled(partial(mean, chunk=shape[1]))(hidden)
    assert float(compiled(partial(mean, chunk=1))(hidden)) == pytest.approx(float(whole), abs=1e-6)
    value, _ = compiled(jax.value_and_grad(partial(mean, chunk=1)))(hidden)  # this one adds in a pass of its own
    assert float(value) == pytest.approx(float(whole), abs=1e-6)


def test_rows_that_no_token_has_are_on_neither_side() -> None:
    case, settings = Case(np.float32), stage(divergence="reverse_kl")
    loss, (_, along_head) = case.slope(settings)
    assert float(jnp.abs(along_head[9:]).max()) == 0 < float(jnp.abs(along_head[:9]).min())
    case.view.head[9:], case.head[9:] = 50.0, -50.0
    assert_close(case.slope(settings)[0], loss, atol=0)


def test_scores_far_apart_stay_numbers() -> None:
    p, q = (log_probs(jnp.asarray([[side, -side, 0.0]]), 0.5, 3) for side in (3e4, -3e4))
    for name, settings in ((name, stage(divergence=name, **OWN.get(name, {}))) for name in DIVERGENCES):
        case = Case(np.float32)
        case.hidden *= 1e4
        loss, slope = case.slope(settings)
        assert all(bool(jnp.isfinite(part).all()) for part in (loss, *slope)), name
    assert float(forward_kl(p, q)[0]) == pytest.approx(1.2e5)


def test_a_teacher_is_asked_in_the_step() -> None:
    data = batch([8, 12, 5, 9], 16)
    settings = stage(alpha=Schedule(start=1.0, end=0.0), temperature=2.0)
    run = compiled(lambda params, numbers, weights: slopes(
        CONFIG, params, data, settings, numbers, teacher=TEACHER._replace(weights=weights)))  # fmt: skip
    _, metrics = run(PARAMS, {"alpha": 1.0}, TEACHER.weights)
    sides = ((CONFIG, PARAMS), (WIDE, TEACHER.weights))
    p, q = (
        log_probs(decoder.logits(c, w, decoder.forward(c, w, data["tokens"], data["segment_ids"])), 2.0, 35)
        for c, w in sides[::-1]
    )
    wanted = float((forward_kl(p, q) * data["mask"]).sum() / data["mask"].sum())
    assert float(metrics["divergence"]) == pytest.approx(wanted, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(4 * wanted, rel=1e-5)
    # Without a share it is plain fine-tuning.
    slope, metrics = run(PARAMS, {"alpha": 0.0}, TEACHER.weights)
    plain, told = compiled(partial(slopes, CONFIG, stage=stage(objective="sft")))(PARAMS, data)
    assert_close(slope, plain)
    assert float(metrics["loss"]) == pytest.approx(float(told["loss"]), abs=1e-6) == float(metrics["nll"])
    # Rows at a time, and a teacher in fewer bits.
    parts = compiled(lambda params: slopes(CONFIG, params, data, settings.model_copy(update={"micro_batch_size": 2}),
                                           {"alpha": 1.0}, teacher=TEACHER))  # fmt: skip
    assert_close(parts(PARAMS), run(PARAMS, {"alpha": 1.0}, TEACHER.weights))


@pytest.mark.slow
def test_a_teacher_in_fewer_bits_is_nearly_the_teacher() -> None:
    data = batch([8, 12, 5, 9], 16)
    run = compiled(
        lambda weights: mean_loss(CONFIG, PARAMS, data, stage(), teacher=TEACHER._replace(weights=weights))[0]
    )
    exact = float(run(TEACHER.weights))
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TEACHER.weights)
    eight = layouts.stack(WIDE, quantize_weights(layouts.unstack(WIDE, jax.tree.map(jnp.copy, TEACHER.weights))))
    for weights in (halved, eight):
        assert 0 < abs(float(run(weights)) - exact) < 0.01 * exact


@pytest.mark.slow
def test_a_step_on_eight_devices_asks_the_teacher_as_one_does() -> None:
    optimizer, data, after = optax.sgd(0.1), batch([8, 12, 5, 9, 11, 4, 6, 10], 16), []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        where = State(param_shardings(CONFIG, PARAMS, mesh), optimizer.init(PARAMS))
        state = State(jax.device_put(fresh(), where.params), where.optimizer)
        weights = jax.device_put(TEACHER.weights, param_shardings(WIDE, TEACHER.weights, mesh))
        run = make_step(CONFIG, stage(), optimizer, mesh, where, teacher=TEACHER._replace(weights=weights))
        for _ in range(2):
            state, metrics = run(state, data)
        after.append((jax.device_get(state.params), float(metrics["divergence"])))
    assert after[0][1] == pytest.approx(after[1][1], abs=1e-5)
    assert_close(after[0][0], after[1][0], atol=1e-6)


def test_scores_of_neither_are_held_for_all_positions_at_once() -> None:
    shape, hidden, head = (4, 512), jnp.zeros((4, 512, 32)), jnp.zeros((32000, 32))
    data = {"targets": jnp.zeros(shape, jnp.int32), "mask": jnp.ones(shape)}

    def total(hidden: jax.Array, head: jax.Array, teacher: jax.Array) -> jax.Array:
        loss, parts, constants = objective_of(stage(), data, {}, View(score, teacher, head, 32000))
        return chunked_sums(score, loss, hidden, head, parts, constants).loss

    used = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, head, hidden).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * 512 * 32000 * 4 / 2


def test_numbers_go_their_way() -> None:
    settings = stage(
        alpha={"start": 0.0, "end": 1.0, "kind": "cosine"}, temperature={"start": 4.0, "end": 1.0}, beta=0.5
    )
    assert scheduled(settings, 1, 101) == {"alpha": 0.0, "temperature": 4.0}
    assert scheduled(settings, 26, 101) == pytest.approx({"alpha": 0.1464466, "temperature": 3.25})
    assert scheduled(settings, 101, 101) == {"alpha": 1.0, "temperature": 1.0}


def test_an_objective_is_told_with_what_it_goes_by() -> None:
    told = stage(divergence="jsd", alpha={"start": 1, "end": 0.5}, temperature=2).objective_in_words
    assert told == "logits: jsd, alpha 1 to 0.5, temperature 2"
    assert stage(objective="sft").objective_in_words == "sft"
