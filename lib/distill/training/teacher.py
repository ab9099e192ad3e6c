"""The frozen teacher of a stage: its weights on the stage's mesh, and what it makes of a batch."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from distill.checkpoints.info import read_info
from distill.checkpoints.store import load_weights
from distill.config.stages import Stage
from distill.models import decoder, layouts
from distill.models.config import ModelConfig
from distill.models.int8 import quantize_weights, wide
from distill.parallel.runtime import give_back
from distill.text.spelling import Shared, shared_classes
from distill.text.tokenizer import load_tokenizer
from distill.training.state import param_shardings


class Teacher(NamedTuple):
    """A model that is asked and never changed. `real_vocab`: rows of the head that are tokens of the tokenizer.
    `shared`: what its tokens have in common with the student's, where these are others."""

    config: ModelConfig
    weights: decoder.Params
    real_vocab: int
    shared: Shared | None = None


class View(NamedTuple):
    """The teacher on a batch: hidden states behind its last norm, and how they become scores.

    score(hidden, head) gives logits [B, t, V]. The whole of them is never held.
    """

    score: Callable[[Array, Array], Array]
    hidden: Float[Array, "B T D"]
    head: Float[Array, "V D"]
    real_vocab: int
    states: Float[Array, "L B T D"] | None = None
    shared: Shared | None = None


def load_teacher(params: Path, stage: Stage, mesh: Mesh, student: Path | None = None) -> Teacher:
    """The weights by their own axes on the mesh, scanned, in `stage.teacher_dtype`.

    student: the params folder that is trained, for `aligned_logits`: its tokenizer may be another.
    """
    info, int8 = read_info(params), stage.teacher_dtype == "int8"
    dtype = stage.dtype if int8 else stage.teacher_dtype  # int8 is computed in the stage's type
    config, weights = load_weights(params, mesh=mesh, dtype=dtype)
    weights = layouts.stack(config, quantize_weights(weights) if int8 else weights)
    weights = jax.device_put(weights, param_shardings(config, weights, mesh))
    give_back()
    shared = None
    if stage.objective == "aligned_logits":
        shared = shared_classes(*(load_tokenizer(folder / "tokenizer") for folder in (params, student)))
    return Teacher(config, weights, info.real_vocab, shared)


def view(teacher: Teacher, batch: dict[str, jax.Array], mesh: Mesh | None = None, *, layers: bool = False) -> View:
    """What the teacher makes of a batch, without a gradient. layers: with what each of its layers gives."""
    config, weights = teacher.config, jax.lax.stop_gradient(teacher.weights)
    own, states = "" if teacher.shared is None else "teacher_", [] if layers else None
    inputs = (batch[f"{own}{name}"] for name in ("tokens", "segment_ids", "positions"))
    hidden, _ = decoder.forward_with_balance(config, weights, *inputs, mesh=mesh, balanced=False, states=states)
    head = wide(weights["embed"] if config.tied else weights["head"])

    def score(hidden: Array, head: Array) -> Array:
        return decoder.scores(config, hidden, head.astype(hidden.dtype))

    return View(score, hidden, head, teacher.real_vocab, jnp.concatenate(states) if states else None, teacher.shared)
