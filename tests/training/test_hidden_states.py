"""Hidden states beside the teacher's: which layers, how far, and what is learned of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import QUICKLY
from tiny_models import tiny_config
from tiny_training import CONFIG, PARAMS, assert_close, batch

from distill.config.stages import Stage
from distill.config.training import HiddenStates
from distill.errors import DistillError
from distill.models import decoder, layouts
from distill.models.families import config_from_hf
from distill.training.hidden_states import PROJECTIONS, apart, make_projections, pairs
from distill.training.step import gradient, mean_loss
from distill.training.teacher import Teacher

pytestmark = pytest.mark.slow

DEEP = config_from_hf(tiny_config(hidden_size=16, intermediate_size=24, num_hidden_layers=5))
TEACHER = Teacher(DEEP, layouts.stack(DEEP, decoder.init(DEEP, jax.random.key(3))), 35)
compiled = partial(jax.jit, compiler_options=QUICKLY)


def test_layers_are_spread_evenly_or_named() -> None:
    assert pairs(HiddenStates(), CONFIG, DEEP) == {0: 1, 1: 4}
    assert pairs(HiddenStates(), DEEP, DEEP) == {i: i for i in range(5)}
    assert pairs(HiddenStates(layers={"1": 3}), CONFIG, DEEP) == {1: 3}
    with pytest.raises(DistillError, match="the student has no layer 2: it has 0 to 1"):
        pairs(HiddenStates(layers={2: 3}), CONFIG, DEEP)
    with pytest.raises(DistillError, match="the teacher has no layer 5: it has 0 to 4"):
        pairs(HiddenStates(layers={0: 5}), CONFIG, DEEP)


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_distance_and_gradient_are_those_of_float64(loss: str) -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(3, 2, 3, 5)), rng.normal(size=(4, 5))
    mask = np.asarray([[1, 0, 1.0], [0, 1, 1.0]])
    settings, layers = HiddenStates(loss=loss), {0: 2, 1: 0}
    total = 0.0
    for ours, theirs in layers.items():
        one, two = x[ours] @ w, y[theirs]
        angle = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
        total += ((1 - angle if loss == "cosine" else ((one - two) ** 2).mean(-1)) * mask).sum() / 2
    with jax.enable_x64(True):
        far = lambda x, w, y=y: apart(settings, layers, x, y, {"0": w, "1": w}, mask)  # noqa: E731
        assert float(far(x, w)) == pytest.approx(total, rel=1e-12)
        slope, along = jax.grad(far, argnums=(0, 1))(x, w), (rng.normal(size=x.shape), rng.normal(size=w.shape))
        moved = [float(far(x + t * along[0], w + t * along[1])) for t in (1e-6, -1e-6)]
        wanted = sum(float((s * a).sum()) for s, a in zip(slope, along, strict=True))
        assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(wanted, rel=1e-6)
        poisoned = [np.where(mask[..., None] > 0, side, np.nan) for side in (x, y)]
        again = jax.grad(lambda x, w: far(x, w, poisoned[1]), argnums=(0, 1))(poisoned[0], w)
        assert_close(again, jax.tree.map(lambda s: s, (slope[0], slope[1])), atol=0)


def test_a_step_draws_the_student_nearer_and_learns_the_way() -> None:
    stage = Stage(init="-", steps=10, objective="logits", hidden_states={"weight": 2.0})
    data = batch([8, 12, 5], 16)
    params = {**PARAMS, PROJECTIONS: make_projections(stage.hidden_states, CONFIG, DEEP, 0)}
    assert {name: leaf.shape for name, leaf in params[PROJECTIONS].items()} == {"0": (32, 16), "1": (32, 16)}
    slope, metrics = compiled(lambda params: gradient(CONFIG, params, data, stage, teacher=TEACHER))(params)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["divergence"] + 2 * metrics["hidden"]), rel=1e-5)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(slope[PROJECTIONS]))
    after = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
    _, then = mean_loss(CONFIG, after, data, stage, teacher=TEACHER)
    assert float(then["hidden"]) < float(metrics["hidden"])
