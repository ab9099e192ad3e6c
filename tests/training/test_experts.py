"""Training a mixture of experts: one step with the experts spread over devices is the step on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_models import QUICKLY, case, golden, load

from distill.config.stages import Stage
from distill.models import layouts
from distill.models.config import Experts
from distill.models.moe import balance
from distill.parallel.mesh import make_mesh
from distill.training.state import State, param_shardings
from distill.training.step import gradient, make_step

pytestmark = pytest.mark.slow

STAGE = Stage(init="-", steps=10)


def test_balance_is_one_when_even_and_counts_real_tokens_of_a_row() -> None:
    experts = Experts(count=4, per_token=2, hidden=8)
    even = jnp.zeros((1, 4, 4)), jnp.asarray([[[0, 1], [2, 3], [0, 1], [2, 3]]])
    assert float(balance(experts, *even, jnp.ones((1, 4), bool))[0]) == pytest.approx(1.0)
    all_ask_two = jnp.full((1, 4, 4), -1e9).at[..., :2].set(0.0), jnp.tile(jnp.asarray([[[0, 1]]]), (1, 4, 1))
    assert float(balance(experts, *all_ask_two, jnp.ones((1, 4), bool))[0]) == pytest.approx(2.0)
    mixed = tuple(jnp.concatenate([a, b], axis=1) for a, b in zip(all_ask_two, even, strict=True))
    real = jnp.asarray([[True] * 4 + [False] * 4])
    assert float(balance(experts, *mixed, real)[0]) == pytest.approx(2.0)
    slope = jax.grad(lambda logits: balance(experts, logits, all_ask_two[1], real[:, :4])[0])(even[0])
    assert float(slope[..., :2].min()) > 0 > float(slope[..., 2:].max()), "those that are asked most get less"


def test_the_balance_loss_has_the_same_gradient_however_the_batch_is_split() -> None:
    config, params = load("mixtral")
    scanned = layouts.stack(config, jax.tree.map(lambda leaf: leaf.copy(), params))
    tokens, lengths = np.random.default_rng(0).integers(3, 80, (4, 16)), [16, 5, 9, 12]
    real = (np.arange(16) < np.asarray(lengths)[:, None]).astype(np.int32)
    batch = {
        "tokens": tokens, "targets": np.roll(tokens, -1, axis=1), "segment_ids": real,
        "positions": np.tile(np.arange(16), (4, 1)), "mask": real.astype(np.float32),
    }  # fmt: skip
    found = []
    for micro in (4, 1):
        stage = STAGE.model_copy(
            update={"batch_size": 4, "micro_batch_size": micro, "balance_loss": 0.5, "remat": "none"}
        )
        run = jax.jit(lambda params, batch, stage=stage: gradient(config, params, batch, stage),
                      compiler_options=QUICKLY)  # fmt: skip
        found.append(run(scanned, batch))
    at_once, split = found
    assert float(at_once[1]["balance"]) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), split, at_once)


def test_a_step_with_spread_experts_is_the_step_on_one_device() -> None:
    config, params = load("mixtral")
    packed, optimizer, after = case(golden("mixtral"), "packed"), optax.sgd(0.1), []
    names = ("tokens", "segment_ids", "positions")
    batch = dict(zip(names, (packed.tokens, packed.segments, packed.positions), strict=True))
    batch |= {"targets": np.roll(packed.tokens, -1, axis=1), "mask": packed.real.astype(np.float32)}
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh({"expert": 4, "fsdp": 2})):
        scanned = layouts.stack(config, jax.tree.map(lambda leaf: leaf.copy(), params))
        where = State(param_shardings(config, scanned, mesh), optimizer.init(scanned))
        state = State(jax.device_put(scanned, where.params), where.optimizer)
        state, metrics = make_step(config, STAGE, optimizer, mesh, where)(state, batch)
        after.append((jax.device_get(state.params), {name: float(value) for name, value in metrics.items()}))
    (one, alone), (spread, together) = after
    np.testing.assert_allclose([*together.values()], [*alone.values()], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, spread)
