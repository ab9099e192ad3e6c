"""Weights lie where their axes say, and a forward pass over eight devices equals one on a single device."""

import jax
import numpy as np
import pytest
from golden_models import NAMES, case, golden, load, run

from distill.checkpoints.store import flat, nest
from distill.models import decoder
from distill.parallel.mesh import batch_sharding, make_mesh, weight_sharding

pytestmark = pytest.mark.slow


def spread(config, params: decoder.Params, mesh: jax.sharding.Mesh) -> decoder.Params:
    """The weights on their devices."""
    axes = decoder.weight_axes(config)
    return nest(
        {
            path: jax.device_put(leaf, weight_sharding(mesh, axes[path], leaf.shape))
            for path, leaf in flat(params).items()
        }
    )


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_equal_one(name: str, holds) -> None:
    config, params = load(name)
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})
    weights = spread(config, params, mesh)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(weights))
    assert here < 0.4 * sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    wanted = case(golden(name), "packed")
    inputs = jax.device_put(
        (wanted.tokens, wanted.segments, wanted.positions, wanted.logits, wanted.real), batch_sharding(mesh)
    )
    ours = run(config, weights, type(wanted)(*inputs), mesh=mesh)
    difference = np.abs(np.asarray(ours) - run(config, params, wanted))[wanted.real].max()
    holds(name, "8 devices", float(difference))
    assert difference <= 5e-5


def test_experts_lie_on_the_expert_axis() -> None:
    config, params = load("deepseek_v3")
    mesh = make_mesh({"expert": 4, "tensor": 2})
    weights = flat(spread(config, params, mesh))
    gate, down = (weights[f"layers.1.ffn.experts.{part}"] for part in ("gate", "down"))
    assert gate.shape == (8, 8, 32)
    assert {shard.data.shape for shard in gate.addressable_shards} == {(2, 4, 32)}
    assert {shard.data.shape for shard in down.addressable_shards} == {(2, 32, 4)}
