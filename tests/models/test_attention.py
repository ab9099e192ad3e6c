"""A fused kernel attends as the products and the softmax do that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.models.attention import Fused, attend, causal_mask
from distill.models.config import Layer, ModelConfig, Rope

CONFIG = ModelConfig(
    family="llama", vocab_size=8, hidden=64, ffn=8, heads=4, kv_heads=2, head_dim=16, layers=(Layer(),),
    ropes=(Rope(theta=1e4, width=16),), max_positions=256, norm_eps=1e-5, attention_scale=0.2,
)  # fmt: skip
SEGMENTS = np.repeat([[1, 2, 0], [1, 1, 1]], [40, 60, 28], axis=1).astype(np.int32)


def both_ways(fused: Fused, dtype: type, window: int | None) -> list[tuple[jax.Array, ...]]:
    """What is attended at real tokens [B, T, N, H], and its slopes in q, k and v; plainly in float32, then fused."""
    random, real = np.random.default_rng(0), (SEGMENTS > 0)[:, :, None, None]
    shapes = [(2, 128, 4, 16), (2, 2, 128, 16), (2, 2, 128, 16)]
    given = [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]
    mask = causal_mask(jnp.asarray(SEGMENTS), window)

    def run(fused: Fused | None, *given: jax.Array) -> tuple[jax.Array, ...]:
        def attended(*given):
            return jnp.where(real, attend(CONFIG, *given, mask, fused).astype(jnp.float32), 0.0)

        out, back = jax.vjp(attended, *given)
        return out, *back(out)

    return [
        tuple(np.asarray(part, np.float32) for part in jax.jit(run, static_argnums=0)(how, *values))
        for how, values in ((None, [a.astype(jnp.float32) for a in given]), (fused, given))
    ]


@pytest.mark.parametrize("window", [None, 24])
def test_a_fused_kernel_attends_as_the_plain_products_do(window: int | None) -> None:
    """Grouped queries, packed examples, padding, windows and a scale of its own: the call means the same."""
    for plain, fused in zip(*both_ways("xla", jnp.float32, window), strict=True):
        np.testing.assert_allclose(fused, plain, atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel needs a GPU")
@pytest.mark.parametrize("window", [None, 24])
def test_cudnn_s_kernel_does(window: int | None) -> None:
    for plain, fused in zip(*both_ways("cudnn", jnp.bfloat16, window), strict=True):
        np.testing.assert_allclose(fused, plain, atol=2e-2 * np.abs(plain).max())
