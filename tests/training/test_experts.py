"""Training a mixture of experts: one step with the experts spread over devices is the step on one device."""

import jax
import numpy as np
import optax
from golden_models import case, golden, load

from distill.config import Stage
from distill.models import decoder
from distill.parallel.mesh import make_mesh
from distill.training.state import State, param_shardings
from distill.training.step import make_step

STAGE = Stage(init="-", steps=10)


def test_a_step_with_spread_experts_is_the_step_on_one_device() -> None:
    config, params = load("mixtral")
    packed, optimizer, after = case(golden("mixtral"), "packed"), optax.sgd(0.1), []
    names = ("tokens", "segment_ids", "positions")
    batch = dict(zip(names, (packed.tokens, packed.segments, packed.positions), strict=True))
    batch |= {"targets": np.roll(packed.tokens, -1, axis=1), "mask": packed.real.astype(np.float32)}
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh({"expert": 4, "fsdp": 2})):
        scanned = decoder.stack(config, jax.tree.map(lambda leaf: leaf.copy(), params))
        where = State(param_shardings(config, scanned, mesh), optimizer.init(scanned))
        state = State(jax.device_put(scanned, where.params), where.optimizer)
        state, metrics = make_step(config, STAGE, optimizer, mesh, where)(state, batch)
        after.append((jax.device_get(state.params), {name: float(value) for name, value in metrics.items()}))
    (one, alone), (spread, together) = after
    np.testing.assert_allclose([*together.values()], [*alone.values()], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, spread)
