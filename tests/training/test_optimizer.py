"""Every optimiser by name learns, and its memory lies where the weights do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config.stages import Stage
from distill.parallel.mesh import make_mesh, replicated, weight_sharding
from distill.training.optimizer import make_optimizer
from distill.training.state import moment_shardings

SHAPE = (2, 256, 128)  # layers, out, in: large enough for Adafactor to keep two vectors in place of a matrix


def state_bytes(state: object) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(("name", "rate"), [("adamw", 1e-2), ("adafactor", 1e-2), ("lion", 3e-3)])
def test_it_descends_and_decays_matrices_alone(name: str, rate: float) -> None:
    stage = Stage(init="-", steps=60, learning_rate=rate, optimizer=name, clip_norm=1e9, schedule="constant")
    goal = jax.random.normal(jax.random.key(0), SHAPE) * 0.1
    optimizer, params = make_optimizer(stage, 60), {"w": jnp.zeros(SHAPE)}
    loss = lambda params: jnp.mean((params["w"] - goal) ** 2)  # noqa: E731

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state)
    assert float(loss(params)) < 0.05 * float(loss({"w": jnp.zeros(SHAPE)}))

    decaying = make_optimizer(stage.model_copy(update={"weight_decay": 0.5}), 60)
    still = {"w": jnp.ones(SHAPE), "norm": jnp.ones(128)}
    updates, _ = decaying.update(jax.tree.map(jnp.zeros_like, still), decaying.init(still), still)
    np.testing.assert_allclose(updates["w"], -0.5 * rate, rtol=1e-5)
    assert float(jnp.abs(updates["norm"]).max()) == 0


def test_what_they_remember() -> None:
    sizes = {}
    for name in ("adamw", "lion", "adafactor"):
        optimizer = make_optimizer(Stage(init="-", steps=1, optimizer=name), 1)
        sizes[name] = state_bytes(optimizer.init({"w": jnp.zeros(SHAPE)}))
    weights = 4 * np.prod(SHAPE)
    assert sizes["adamw"] // weights == 2
    assert sizes["lion"] // weights == 1
    assert sizes["adafactor"] < 0.05 * weights


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_moments_lie_beside_their_weights(name: str) -> None:
    mesh, params = make_mesh({"fsdp": 4, "tensor": 2}), {"w": jnp.zeros(SHAPE)}
    where = {"w": weight_sharding(mesh, "F D", SHAPE)}
    optimizer = make_optimizer(Stage(init="-", steps=1, optimizer=name), 1)
    found = moment_shardings(optimizer, params, where, mesh)
    state = jax.jit(optimizer.init, out_shardings=found)(params)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        assert sharding == (where["w"] if leaf.shape == SHAPE else replicated(mesh))
