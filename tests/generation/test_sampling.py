"""Draws follow the distribution they claim, and never leave it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.generation.sampling import Draw, choose, many_uniforms, pick, sampled_of, thresholds, uniforms
from distill.generation.seeds import request_seed

DRAWS = 100_000


def draw(how: Draw, logits: np.ndarray, real_vocab: int | None = None, seed: int = 0) -> np.ndarray:
    """DRAWS tokens from one row of logits."""
    u = jax.random.uniform(jax.random.key(seed), (DRAWS, 2))
    tokens = _drawn(how, jnp.asarray(logits), u, real_vocab or len(logits))
    return np.asarray(tokens)


@partial(jax.jit, static_argnums=3)
def _drawn(how: Draw, logits: jax.Array, u: jax.Array, real_vocab: int) -> jax.Array:
    rows = Draw(*(jnp.full(DRAWS, value) for value in how))
    return choose(rows, jnp.broadcast_to(logits[None], (DRAWS, len(logits))), u, real_vocab)[0]


def chi_square(tokens: np.ndarray, probabilities: np.ndarray) -> float:
    """The statistic, in standard deviations from its mean; cells that expect under 5 draws are joined."""
    counts, expected = np.bincount(tokens, minlength=len(probabilities)), DRAWS * probabilities
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    return (float(((counts - expected) ** 2 / expected).sum()) - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_weighted_draws_have_the_softmax_distribution(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 300).astype(np.float32)
    tokens = draw(Draw(temperature), logits)
    assert chi_square(tokens, np.asarray(jax.nn.softmax(logits / temperature))) < 4


def test_a_token_of_probability_1e_6_is_drawn_as_often_as_that() -> None:
    # 240 of them among 300, in all blocks; in ten times 100,000 draws 240 are expected.
    probabilities = np.full(300, 1e-6)
    probabilities[::5] = (1 - 240e-6) / 60
    logits = np.log(probabilities).astype(np.float32)
    rare = sum(int((draw(Draw(), logits, seed=seed) % 5 > 0).sum()) for seed in range(10))
    assert abs(rare - 240) < 4 * np.sqrt(240)


def test_top_k_draws_among_the_k_best() -> None:
    logits = np.random.default_rng(1).normal(0, 1, 500).astype(np.float32)
    tokens = draw(Draw(top_k=7), logits)
    best = np.argsort(-logits)[:7]
    kept = np.zeros(500)
    kept[best] = np.asarray(jax.nn.softmax(logits[best]))
    assert chi_square(tokens, kept) < 4
    assert set(tokens) == set(best)


@pytest.mark.parametrize("size", [40, 300])  # settled by the 64 best, and not
def test_nucleus_is_the_smallest_set_that_holds_top_p(size: int) -> None:
    masses = np.random.default_rng(2).dirichlet(np.full(size, 1.0), 50).astype(np.float32)
    masses /= masses.max(-1, keepdims=True)
    for top_p in (0.1, 0.5, 0.9, 0.99):
        rows = Draw(jnp.ones(50), jnp.zeros(50, jnp.int32), jnp.full(50, top_p), jnp.zeros(50))
        for mass, least in zip(masses, np.asarray(thresholds(masses, rows)), strict=True):
            kept, total = mass[mass >= least].astype(np.float64), mass.sum(dtype=np.float64)
            assert kept.sum() >= top_p * total * (1 - 1e-6)
            assert kept.sum() - kept.min() < top_p * total * (1 + 1e-6)


@pytest.mark.parametrize("top_k", [1, 3, 64, 65, 200])
def test_top_k_keeps_k_and_the_ties(top_k: int) -> None:
    masses = np.random.default_rng(3).random((4, 300)).astype(np.float32)
    masses[0, :10] = 1
    rows = Draw(jnp.ones(4), jnp.full(4, top_k), jnp.ones(4), jnp.zeros(4))
    kept = (masses >= np.asarray(thresholds(masses, rows))[:, None]).sum(-1)
    assert kept.tolist() == [max(top_k, 10), top_k, top_k, top_k]


def test_min_p_keeps_what_has_that_share_of_the_best() -> None:
    logits = np.log(np.asarray([0.5, 0.3, 0.15, 0.05], np.float32))
    assert set(draw(Draw(min_p=0.25), logits)) == {0, 1, 2}
    assert set(draw(Draw(min_p=0.25, top_p=0.6), logits)) == {0, 1}


def test_a_row_is_drawn_alike_whatever_the_others_ask_for() -> None:
    logits = np.random.default_rng(4).normal(0, 3, (6, 300)).astype(np.float32)
    u = jax.random.uniform(jax.random.key(0), (6, 2))
    ways = [Draw(), Draw(0.7), Draw(top_k=5), Draw(top_p=0.9), Draw(top_k=100, top_p=0.5), Draw(0.0)]
    together = choose(Draw(*(jnp.asarray(c) for c in zip(*ways, strict=True))), jnp.asarray(logits), u, 290)
    for i, way in enumerate(ways):
        alone = choose(Draw(*(jnp.full(6, value) for value in way)), jnp.asarray(logits), u, 290)
        assert (int(alone[0][i]), float(alone[1][i])) == (int(together[0][i]), float(together[1][i]))


def test_composite_applies_temperature_before_top_k_before_top_p() -> None:
    # At temperature 4 the three best are nearly even and top_p 0.6 takes two; at temperature 1 it takes one.
    logits = np.log(np.asarray([0.70, 0.20, 0.08, 0.02], np.float32))
    hot = Draw(temperature=4.0, top_k=3, top_p=0.6)
    assert set(draw(hot, logits)) == {0, 1}
    assert set(draw(hot._replace(temperature=1.0), logits)) == {0}
    # Without top_k the fourth would count in the mass of which top_p is a share.
    assert set(draw(hot._replace(top_k=4, top_p=0.75), logits)) == {0, 1, 2}
    assert set(draw(hot._replace(top_k=2, top_p=0.75), logits)) == {0, 1}


def test_padded_rows_of_the_vocabulary_are_never_drawn_and_have_no_mass() -> None:
    logits = np.zeros(300, np.float32)
    logits[250:] = 50.0
    for how in (Draw(), Draw(0.0), Draw(top_p=0.9)):
        assert draw(how, logits, real_vocab=250).max() < 250
    one = Draw(*(jnp.full(1, value) for value in Draw()))
    logprob = choose(one, jnp.asarray(logits)[None], jnp.zeros((1, 2)), 250).logprob
    assert float(logprob[0]) == pytest.approx(-np.log(250), abs=1e-5)


def test_the_ends_of_the_unit_interval_pick_entries_that_have_mass() -> None:
    mass = jnp.asarray([[0.0, 0.0, 0.4, 0.0, 0.6, 0.0]])
    last = np.nextafter(np.float32(1), np.float32(0))
    assert [int(pick(mass, jnp.asarray([u]))[0]) for u in (0.0, 0.39, 0.41, last)] == [2, 2, 4, 4]
    wide = jnp.full((1, 1000), -jnp.inf).at[0, 300].set(np.log(0.4)).at[0, 700].set(np.log(0.6))
    one = Draw(*(jnp.full(1, value) for value in Draw()))
    ends = [int(choose(one, wide, jnp.asarray([[u, v]]), 1000)[0][0]) for u in (0.0, last) for v in (0.0, last)]
    assert ends == [300, 300, 700, 700]


def test_uniforms_depend_on_seed_sample_and_position_alone() -> None:
    seeds = np.asarray([[1, 2], [3, 4], [1, 2]], np.uint32)
    samples, positions = np.asarray([0, 1, 0]), np.asarray([5, 6, 7])
    drawn = np.asarray(uniforms(seeds, samples, positions))
    alone = [np.asarray(uniforms(seeds[i : i + 1], samples[i : i + 1], positions[i : i + 1]))[0] for i in range(3)]
    np.testing.assert_array_equal(drawn, alone)
    assert len(np.unique(drawn)) == 6
    assert (drawn >= 0).all()
    assert (drawn < 1).all()


def test_a_requests_seed_is_the_same_in_every_process() -> None:
    assert request_seed(0, "0123456789abcdef") == 4034117403007414728
    assert request_seed(1, "0123456789abcdef") != request_seed(0, "0123456789abcdef")


def test_sampled_logits_are_draws_from_the_softmax() -> None:
    """1000 positions of 100 draws each, over three blocks of which the last is partly padding."""
    logits = np.random.default_rng(3).normal(0, 2, 300).astype(np.float32)
    rows, zero = jnp.arange(1000), jnp.zeros(1000, jnp.int32)
    u = many_uniforms(jnp.zeros((1000, 2), jnp.uint32), zero, rows, 100)
    logprobs, ids = jax.jit(partial(sampled_of, real_vocab=290))(jnp.broadcast_to(logits, (1000, 300)), u)
    wanted = np.append(np.asarray(jax.nn.log_softmax(logits[:290])), np.full(10, -np.inf))
    assert chi_square(np.asarray(ids).ravel(), np.exp(wanted)) < 4
    np.testing.assert_allclose(logprobs, wanted[np.asarray(ids)], atol=1e-5)
    first = uniforms(jnp.zeros((1000, 2), jnp.uint32), zero, rows)
    assert abs(np.corrcoef(np.asarray(first[:, 0]), np.asarray(u[:, 0, 0]))[0, 1]) < 0.15  # not the token's own
