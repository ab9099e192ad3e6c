"""Examples that are kept apart: never trained on, and asked for their loss now and then."""

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill.config.stages import Stage
from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.data.rows import permutation
from distill.errors import DistillError
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.parallel.mesh import batch_sharding, replicated
from distill.parallel.processes import spread
from distill.training.objectives import Batch, Numbers
from distill.training.state import Frozen
from distill.training.step import Still, batch_sums
from distill.training.teacher import Teacher

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
    length: int | None,
    mesh: Mesh,
    where: decoder.Params,
    frozen: Frozen | None,
    teacher: Teacher | None = None,
) -> Callable[[decoder.Params, Numbers], dict[str, float]]:
    """(params, numbers of the step) → held_out_loss, _perplexity, _accuracy, with a teacher _divergence too.

    held_out_loss: mean NLL in nats over the tokens that would be learned, whatever the objective, so that stages
    compare; the divergence is the stage's own. The recipe's evaluation is asked for NLL alone, in rows of its own
    length.
    """
    if stage.held_out == "evaluation":
        stage, length, teacher = stage.model_copy(update={"objective": "sft", "packing": False}), None, None
    rows = stage.micro_batch_size or stage.batch_size
    loader = Loader(examples, rows, 0, length, packing=stage.packing, endless=False)
    sharding, still = batch_sharding(mesh), Still.of(frozen, teacher)

    def judged(params: decoder.Params, still: Still, batch: Batch, numbers: Numbers) -> list[jax.Array]:
        how = still.to(frozen, teacher)
        sums, _ = batch_sums(config, params, batch, stage, numbers, **how, mesh=mesh)
        divergence = [] if sums.divergence is None else [sums.divergence]
        return [jnp.sum(batch["mask"]), sums.nll, sums.correct, *divergence]

    shardings = where, jax.tree.map(lambda leaf: leaf.sharding, still), sharding, replicated(mesh)
    compiled = jax.jit(judged, in_shardings=shardings, out_shardings=replicated(mesh))

    def judge(params: decoder.Params, numbers: Numbers) -> dict[str, float]:
        total: float | np.ndarray = 0.0
        for step in range(math.ceil(loader.steps_per_epoch)):
            batch = spread(lambda part, step=step: loader.batch(step, part), rows, sharding)
            total += np.asarray([float(value) for value in compiled(params, still, batch, numbers)])
        loss, accuracy, *rest = total[1:] / total[0]
        perplexity = math.exp(min(loss, 700.0))  # or it overflows
        means = {"held_out_loss": loss, "held_out_perplexity": perplexity, "held_out_accuracy": accuracy}
        return means | dict(zip(("held_out_divergence",), rest, strict=False))

    return judge
