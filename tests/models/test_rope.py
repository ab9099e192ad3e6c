"""Rotary embeddings: what is not seen in the logits of one golden batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import case, golden, load, run

from distill.models.config import Rope, Scaling
from distill.models.rope import frequencies, magnitude, rotate, rotation, yarn_mscale


def test_longrope_is_a_matter_of_each_sequence() -> None:
    """A long row and a short one, in one batch: the golden logits of each, which were made in batches apart."""
    config, params = load("phi3_longrope")
    plain, padded = (case(golden("phi3_longrope"), which) for which in ("plain", "padded"))
    mixed = [
        np.stack([long[0], short[1]]) for long, short in zip(vars(plain).values(), vars(padded).values(), strict=True)
    ]
    assert type(plain)(*mixed).parity(run(config, params, type(plain)(*mixed))).max_difference <= 1e-4


def test_a_model_that_reaches_further_takes_the_long_factors() -> None:
    config, _ = load("phi3_longrope")  # original context 72
    scaling = config.ropes[0].scaling
    short, long = (config.reaching(length).ropes[0].scaling for length in (72, 73))
    assert (short.short, short.long) == (scaling.short, scaling.short)
    assert (long.short, long.long) == (scaling.long, scaling.long)
    plain, _ = load("qwen3")
    assert plain.reaching(10**6) == plain


def test_yarn_keeps_quick_pairs_and_slows_slow_ones() -> None:
    scaling = Scaling(kind="yarn", factor=40.0, original=4096, mscale=0.707, mscale_all_dim=0.707)
    plain, scaled = (frequencies(Rope(theta=10000.0, width=64, scaling=s)) for s in (None, scaling))
    ratio = plain / scaled
    np.testing.assert_allclose(ratio[:10], 1.0, rtol=1e-6)  # 32 turns and more in 4096 positions: DeepSeek-V2's
    np.testing.assert_allclose(ratio[23:], 40.0, rtol=1e-6)  # bounds are pairs 10 and 23
    assert (np.diff(ratio[10:24]) > 0).all()
    assert magnitude(scaling) == 1.0
    assert yarn_mscale(scaling, 0.707) == pytest.approx(0.1 * 0.707 * np.log(40) + 1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_distance_alone(interleaved: bool) -> None:
    """A turn of both by 7 positions more changes no product; widths beyond the rotated ones are left alone."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 3, 1, 10))
    rope = Rope(theta=100.0, width=8)

    def scores(start: int) -> jax.Array:
        turn = rotation(rope, jnp.arange(start, start + 3)[None])
        a, b = (rotate(x, turn, interleaved=interleaved) for x in (q, k))
        np.testing.assert_array_equal(a[..., 8:], q[..., 8:])
        return jnp.einsum("BTNH,BSNH->TS", a, b)

    np.testing.assert_allclose(scores(0), scores(7), atol=1e-5)
    assert float(jnp.abs(scores(0) - jnp.einsum("BTNH,BSNH->TS", q, k)).max()) > 0.1
