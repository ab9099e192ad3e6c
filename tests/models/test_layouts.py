"""One model in two layouts: layer by layer, and scanned over stacks of equal layers."""

from functools import partial

import jax
import numpy as np
import pytest
from golden_models import NAMES, QUICKLY, case, golden, load, logits, run

from distill.models import decoder, layouts


def copied(params: decoder.Params) -> decoder.Params:
    """`stack` empties the tree that it is given."""
    return jax.tree.map(lambda leaf: leaf, params)


@pytest.mark.parametrize("name", NAMES)
def test_scanned_equals_unscanned(name: str, holds) -> None:
    config, params = load(name)
    stacked = layouts.stack(config, copied(params))
    difference = 0.0
    for which in ("packed", "plain"):
        wanted = case(golden(name), which)
        one, other = (np.asarray(run(config, tree, wanted))[wanted.real] for tree in (params, stacked))
        difference = max(difference, float(np.abs(one - other).max()))
    holds(name, "scanned", difference)
    assert difference <= 5e-5


@pytest.mark.parametrize("name", NAMES)
def test_unstack_undoes_stack(name: str) -> None:
    config, params = load(name)
    back = layouts.unstack(config, layouts.stack(config, copied(params)))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_gradients_do_not_depend_on_layout_or_recomputation() -> None:
    config, params = load("gemma3_text")  # windows and rotary embeddings differ from layer to layer
    packed = case(golden("gemma3_text"), "packed")
    inputs = (packed.tokens, packed.segments, packed.positions)

    @partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
    def gradient(params: decoder.Params, remat: str) -> decoder.Params:
        def loss(params: decoder.Params) -> jax.Array:
            return jax.nn.log_softmax(logits.__wrapped__(config, params, inputs, remat=remat))[0, :96, 3].mean()

        return jax.grad(loss)(params)

    plain = gradient(params, "none")
    scanned = layouts.unstack(config, gradient(layouts.stack(config, copied(params)), "full"))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, float(np.abs(one).max())))
