"""Eight bits: no entry is off by more than half a step, and a quantized model is the model of its rounded weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import load

from distill.checkpoints.store import flat
from distill.generation.engine import Engine
from distill.generation.requests import Request
from distill.generation.sampling import Draw
from distill.models.int8 import Int8, quantize_weights, quantized, wide

NAMES = ["llama_gqa_tied", "gemma3_text", "deepseek_v2_lite"]  # grouped queries; rings; latents and experts


def test_no_entry_is_off_by_more_than_half_a_step() -> None:
    x = jax.random.normal(jax.random.key(0), (5, 7, 33)).at[2, 3].set(0.0)
    kept = quantized(x)
    assert kept.values.dtype == jnp.int8
    rounding = 127.5 * np.finfo(np.float32).eps  # of the quotient, in steps
    assert np.all(np.abs(kept.wide() - x) <= kept.scale * (0.5 + rounding))
    assert not np.any(kept.wide()[2, 3])
    short = x.astype(jnp.bfloat16)
    again = quantized(short)
    assert again.wide().dtype == jnp.bfloat16
    exact = again.values * again.scale
    assert np.all(np.abs(exact - short.astype(jnp.float32)) <= again.scale * (0.5 + rounding))


@pytest.mark.parametrize("rows", [2, slice(1, 3), np.array([[4, 0], [1, 1]])], ids=["one", "slice", "array"])
def test_rows_of_a_quantized_array_are_those_of_the_array(rows) -> None:
    x = jax.random.normal(jax.random.key(0), (5, 7))
    np.testing.assert_array_equal(quantized(x)[rows].wide(), quantized(x).wide()[rows])
    np.testing.assert_array_equal(quantized(x)[jnp.array([3, 3])].wide(), quantized(x).wide()[np.array([3, 3])])


def answers(config, params, **options) -> list[tuple[list[int], np.ndarray]]:
    engine = Engine(config, params, slots=4, max_length=50, real_vocab=config.vocab_size, **options)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, config.vocab_size, 9 + 3 * i).tolist()) for i in range(4)]
    results = dict(engine.run([Request(p, i, 0, 30, Draw(top_k=20)) for i, p in enumerate(prompts)]))
    return [(results[i].tokens, np.asarray(results[i].logprobs)) for i in range(len(prompts))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_gqa_tied", "deepseek_v2_lite"])
def test_a_quantized_model_is_the_model_of_its_rounded_weights(name: str) -> None:
    config, params = load(name)
    kept = quantize_weights(jax.tree.map(jnp.array, params))
    matrices = [path for path, leaf in flat(kept).items() if isinstance(leaf, Int8)]
    assert "embed" in matrices
    assert not any("norm" in path or "router" in path for path in matrices)
    for (tokens, logprobs), (same, wanted) in zip(answers(config, kept), answers(config, wide(kept)), strict=True):
        assert tokens == same
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_in_eight_bits_says_nearly_the_same(name: str) -> None:
    config, params = load(name)
    plain, kept = answers(config, params), answers(config, params, int8_cache=True)
    differences = []
    for (tokens, logprobs), (others, near) in zip(plain, kept, strict=True):
        same = int(np.argmin([*(a == b for a, b in zip(tokens, others, strict=True)), False]))
        differences += np.abs(logprobs[:same] - near[:same]).tolist()
    assert len(differences) > 30
    assert 0 < np.mean(differences) < 0.02
