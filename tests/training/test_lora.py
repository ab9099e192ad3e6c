"""Adapters: they start as the model, they alone are learned, and their end is in the weights."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import QUICKLY, load
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.store import flat, load_weights
from distill.config.stages import Stage
from distill.config.training import Lora
from distill.data.masking import Examples
from distill.errors import DistillError
from distill.models import decoder, layouts
from distill.models.lora import Adapters, merged
from distill.parallel.mesh import make_mesh
from distill.training.adapters import adapted, adapter_shardings, make_adapters, merge
from distill.training.loop import fit
from distill.training.optimizer import make_optimizer
from distill.training.state import initial_state

pytestmark = pytest.mark.slow

compiled = partial(jax.jit, compiler_options=QUICKLY)


def copied(params: decoder.Params) -> decoder.Params:
    return jax.tree.map(lambda leaf: leaf.copy(), params)


@pytest.mark.parametrize("name", ["deepseek_v2", "mixtral"])
def test_adapters_in_the_layer_are_adapters_in_the_weights(name: str) -> None:
    """Also of latent attention and of experts, and with dense and sparse layers in one model."""
    config, params = load(name)
    scanned, settings = layouts.stack(config, copied(params)), Lora(rank=3)
    adapters = compiled(lambda: make_adapters(config, settings, 0))()
    tokens = np.random.default_rng(0).integers(3, 80, (1, 12))
    run = compiled(lambda params, tree: decoder.forward(config, params, tokens, adapters=tree and Adapters(tree, 2.0)))
    np.testing.assert_array_equal(run(scanned, adapters), run(scanned, None))
    noise = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: leaf + 0.02 * noise.normal(size=leaf.shape).astype(np.float32), adapters)
    inside, before = run(scanned, moved), run(scanned, adapters)
    assert float(jnp.abs(inside - before).max()) > 0.1
    np.testing.assert_allclose(run(compiled(merge)(scanned, moved, 2.0), None), inside, atol=2e-4)


def test_a_small_change_of_a_frozen_bfloat16_weight_is_seen() -> None:
    weights = {"q": jnp.ones((4, 4), jnp.bfloat16), "k": jnp.ones((4, 4), jnp.bfloat16)}
    small = {"q": {"a": jnp.full((1, 4), 0.01), "b": jnp.full((4, 1), 0.01)}}
    after = merged(weights, small, 1.0)
    np.testing.assert_allclose(after["q"], 1.0001, rtol=1e-6)
    assert after["k"].dtype == jnp.bfloat16


def test_which_weights_have_one() -> None:
    config, _ = load("mixtral")
    names = {path.rsplit(".", 1)[1] for path in adapted(config, Lora())}
    assert names == {"q", "k", "v", "o", "gate", "up", "down"}
    chosen = flat(make_adapters(config, Lora(rank=2, targets=("q", "v")), 0))
    assert {path.split(".", 2)[2] for path in chosen} == {f"attention.{name}.{side}" for name in "qv" for side in "ab"}
    with pytest.raises(DistillError, match=r"no layer has a matrix gat \(did you mean gate\?\): name some of down"):
        adapted(config, Lora(targets=("gat",)))


def test_adapters_lie_beside_their_weights() -> None:
    config, _ = load("llama_gqa_tied")
    where = flat(adapter_shardings(config, Lora(rank=2), make_mesh({"fsdp": 4, "tensor": 2})))
    specs = {path.split(".", 2)[2]: tuple(sharding.spec) for path, sharding in where.items()}
    assert specs["attention.q.a"] == (None, None, "fsdp")
    assert specs["attention.q.b"] == (None, "tensor", None, None)
    assert specs["ffn.down.b"] == (None, "fsdp", None)


def test_a_run_learns_adapters_alone_and_leaves_whole_weights(tmp_path: Path) -> None:
    import_checkpoint(tiny_llama(tmp_path / "hf"), tmp_path / "init", dtype="bfloat16", origin="tiny")
    stage = Stage(init="-", steps=6, batch_size=8, learning_rate=1e-2, lora=Lora(rank=2, targets=("q", "down")))
    ids = np.random.default_rng(0).integers(6, 35, 80).astype(np.int32)
    examples = Examples(ids, np.ones(80, np.uint8), np.arange(0, 81, 8), {})
    start = initial_state(tmp_path / "init", stage, make_optimizer(stage, 6), make_mesh())
    learned = sum(leaf.size for leaf in jax.tree.leaves(start.state.params))
    assert learned == 2 * (2 * 32 + 32 * 2) + 2 * (2 * 48 + 32 * 2)  # q: D and N·H are 32; down: F is 48
    moments = [leaf.size for leaf in jax.tree.leaves(start.state.optimizer)]
    assert sum(moments) < 2 * learned + 10, "the optimiser knows the adapters alone"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(start.frozen.weights)} == {"bfloat16"}
    fit(tmp_path / "init", examples, tmp_path / "run", stage, "sft")
    config, after = load_weights(tmp_path / "run" / "params")
    _, before = load_weights(tmp_path / "init")
    changed = {path.rsplit(".", 1)[1] for path, leaf in flat(after).items() if (leaf != flat(before)[path]).any()}
    assert changed == {"q", "down"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"bfloat16"}
    assert config.family == "llama"
