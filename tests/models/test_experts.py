"""Experts: whom a token asks, and that every way of asking gives the same sums and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.models.config import Experts
from distill.models.moe import WAYS, Way, answer, route
from distill.parallel.mesh import make_mesh

B, T, D, E, X = 4, 8, 16, 8, 6
EXPERTS = Experts(count=E, per_token=3, hidden=X)


@pytest.fixture(scope="module")
def weights() -> dict[str, jax.Array]:
    """Router, gate, up, down, and the tokens."""
    shapes = {"router": (E, D), "gate": (E, X, D), "up": (E, X, D), "down": (E, D, X), "x": (B, T, D)}
    random = np.random.default_rng(0)
    return {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def mixture(weights: dict[str, jax.Array], mesh: jax.sharding.Mesh | None, way: Way) -> jax.Array:
    """Sum of squares of what the experts answer."""
    chosen, shares = route(EXPERTS, jnp.einsum("BTD,ED->BTE", weights["x"], weights["router"]), None)
    experts = tuple(weights[name] for name in ("gate", "up", "down"))
    return jnp.sum(answer("silu", experts, weights["x"], chosen, shares, mesh, way) ** 2)


def one_by_one(weights: dict[str, jax.Array]) -> float:
    """The same, token by token in the plainest words."""
    router, gate, up, down, tokens = (np.asarray(w, np.float64) for w in weights.values())
    total = 0.0
    for x in tokens.reshape(-1, D):
        scores = np.exp(router @ x)
        chosen = np.argsort(-scores)[: EXPERTS.per_token]
        answers = [down[e] @ ((up[e] @ x) * (gate[e] @ x) / (1 + np.exp(-gate[e] @ x))) for e in chosen]
        total += np.sum((scores[chosen] / scores[chosen].sum() @ np.stack(answers)) ** 2)
    return total


@pytest.fixture(scope="module")
def plain(weights) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Value and gradients on one device, by scan."""
    return jax.jit(jax.value_and_grad(lambda w: mixture(w, None, "scan")))(weights)


def test_the_sum_is_that_of_each_token_s_experts(weights, plain) -> None:
    np.testing.assert_allclose(plain[0], one_by_one(weights), rtol=1e-5)


@pytest.mark.parametrize("shape", [None, {"expert": 4, "fsdp": 2}, {"expert": 2, "tensor": 2, "data": 2}, {"fsdp": 8}])
@pytest.mark.parametrize("way", list(WAYS))
def test_values_and_gradients_are_those_of_one_device(weights, plain, way: Way, shape) -> None:
    """The router's gradient too: inside shard_map it goes wrong without an error, if one lets it."""
    mesh = make_mesh(shape) if shape else None
    value, gradient = jax.jit(jax.value_and_grad(lambda w: mixture(w, mesh, way)))(weights)
    np.testing.assert_allclose(value, plain[0], rtol=1e-5)
    assert gradient.keys() == plain[1].keys()
    for name, wanted in plain[1].items():
        np.testing.assert_allclose(gradient[name], wanted, atol=2e-5 * float(jnp.abs(wanted).max()), err_msg=name)


def test_a_token_does_not_see_its_neighbours(weights) -> None:
    alone = {**weights, "x": weights["x"].at[:, 1:].set(0.0)}

    @jax.jit
    def first(w):
        chosen, shares = route(EXPERTS, jnp.einsum("BTD,ED->BTE", w["x"], w["router"]), None)
        return answer("silu", (w["gate"], w["up"], w["down"]), w["x"], chosen, shares)[:, 0]

    np.testing.assert_array_equal(first(weights), first(alone))


def asked(experts: Experts, scores: list[float], bias: list[float] | None = None) -> dict[int, float]:
    """Expert → weight, for router logits that give these scores."""
    probability = np.array(scores)
    logits = np.log(probability) if experts.scores == "softmax" else np.log(probability / (1 - probability))
    chosen, shares = route(experts, jnp.asarray(logits)[None, None], None if bias is None else jnp.asarray(bias))
    return {int(e): round(float(share), 4) for e, share in zip(chosen[0, 0], shares[0, 0], strict=True)}


def test_renormalised_or_not() -> None:
    scores = [0.1, 0.4, 0.2, 0.3]
    assert asked(Experts(count=4, per_token=2, hidden=1), scores) == {1: 0.5714, 3: 0.4286}
    greedy = Experts(count=4, per_token=2, hidden=1, renormalise=False, scale=2.0)
    assert asked(greedy, scores) == {1: 0.8, 3: 0.6}


def test_the_best_group_of_v2_is_the_one_with_the_best_expert() -> None:
    experts = Experts(count=4, per_token=2, hidden=1, groups=2, renormalise=False)
    assert asked(experts, [0.4, 0.05, 0.3, 0.25]) == {0: 0.4, 1: 0.05}


def test_the_best_group_of_v3_is_the_one_with_the_best_two() -> None:
    experts = Experts(count=4, per_token=2, hidden=1, groups=2, scores="sigmoid", group_score="top2")
    assert asked(experts, [0.9, 0.1, 0.6, 0.6]) == {2: 0.5, 3: 0.5}


def test_a_bias_moves_the_choice_and_not_the_weights() -> None:
    experts = Experts(count=4, per_token=2, hidden=1, scores="sigmoid", bias=True)
    assert asked(experts, [0.8, 0.4, 0.2, 0.1], [0.0, 0.0, 0.5, 0.0]) == {0: 0.8, 2: 0.2}
