"""Examples that are kept apart: never trained on, and asked for their loss now and then."""

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill.config import Stage
from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.data.rows import permutation
from distill.errors import DistillError
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.parallel.mesh import batch_sharding, replicated
from distill.parallel.processes import spread
from distill.training.state import Frozen
from distill.training.step import batch_sums

HELD_OUT = 3  # the stream of random numbers that chooses them


def split(examples: Examples, count: int, name: str) -> tuple[Examples, Examples | None]:
    """Examples to train on and `count` kept apart, the same ones whatever the stage's seed."""
    if not count:
        return examples, None
    if count >= len(examples):
        raise DistillError(f"stage {name}: held_out is {count}, there are {len(examples)} examples: lower it")
    apart = np.zeros(len(examples), bool)
    apart[permutation(len(examples), 0, 0, HELD_OUT)[:count]] = True
    return examples.taken(~apart), replace(examples.taken(apart), sources=())


def make_judge(
    config: ModelConfig,
    stage: Stage,
    examples: Examples,
    length: int,
    mesh: Mesh,
    where: decoder.Params,
    frozen: Frozen | None,
) -> Callable[[decoder.Params], dict[str, float]]:
    """params → held_out_loss (mean NLL in nats over the tokens that would be learned), _perplexity, _accuracy."""
    rows = stage.micro_batch_size or stage.batch_size
    loader = Loader(examples, rows, 0, length, packing=stage.packing, endless=False)
    sharding, weights = batch_sharding(mesh), {} if frozen is None else frozen.weights

    def judged(params: decoder.Params, weights: decoder.Params, batch: dict) -> tuple[jax.Array, ...]:
        fixed = None if frozen is None else frozen._replace(weights=weights)
        sums, _ = batch_sums(config, params, batch, stage, frozen=fixed, mesh=mesh)
        return sums.nll, sums.correct, jnp.sum(batch["mask"])

    shardings = where, jax.tree.map(lambda leaf: leaf.sharding, weights), sharding
    compiled = jax.jit(judged, in_shardings=shardings, out_shardings=replicated(mesh))

    def judge(params: decoder.Params) -> dict[str, float]:
        total = np.zeros(3)
        for step in range(math.ceil(loader.steps_per_epoch)):
            batch = spread(lambda part, step=step: loader.batch(step, part), rows, sharding)
            total += [float(value) for value in compiled(params, weights, batch)]
        loss = total[0] / total[2]
        perplexity = math.exp(min(loss, 700.0))  # or it overflows
        return {
            "held_out_loss": loss,
            "held_out_perplexity": perplexity,
            "held_out_accuracy": total[1] / total[2],
        }

    return judge
