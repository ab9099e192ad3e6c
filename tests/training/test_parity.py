"""The first twenty steps' losses are those of transformers with torch's AdamW, from the same weights and batches."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_models import QUICKLY, load

sys.path.insert(0, str(Path(__file__).parent))
import reference_run

from distill.config.stages import Stage
from distill.models import layouts
from distill.training.optimizer import make_optimizer
from distill.training.step import gradient


def our_losses() -> list[float]:
    config, params = load("llama_gqa_tied")
    stage = Stage(init="-", **reference_run.STAGE)
    params = layouts.stack(config, jax.tree.map(lambda leaf: leaf.copy(), params))
    optimizer = make_optimizer(stage, stage.steps)
    moments, losses = optimizer.init(params), []
    slopes = jax.jit(lambda params, batch: gradient(config, params, batch, stage), compiler_options=QUICKLY)

    @jax.jit
    def descend(params, moments, slope):
        updates, moments = optimizer.update(slope, moments, params)
        return jax.tree.map(jax.numpy.add, params, updates), moments

    for batch in reference_run.batches():
        slope, metrics = slopes(params, batch)
        params, moments = descend(params, moments, slope)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.fixture(scope="module")
def ours() -> list[float]:
    return our_losses()


def test_losses_are_those_of_torch(ours: list[float]) -> None:
    theirs = json.loads(reference_run.LOSSES.read_text())["losses"]
    assert theirs[-1] < theirs[0] - 0.05
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_losses_are_those_of_torch_as_it_is_installed(ours: list[float]) -> None:
    np.testing.assert_allclose(ours, reference_run.torch_losses(), rtol=1e-5)
