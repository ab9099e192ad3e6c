"""The train step and the decode step of a recipe, on shapes alone: no weight is made.

What a device must hold is counted twice: by the closed form, from the shapes and where they lie, and by the
compiler, for the very program that a run compiles, on as many simulated devices of the CPU.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill.checkpoints.store import nest
from distill.config.generation import Generation
from distill.config.stages import Stage
from distill.data.loader import spans
from distill.generation.programs import Setup, Telling, decode_on_shapes
from distill.models import decoder, layouts
from distill.models.config import ModelConfig
from distill.models.int8 import in_eight_bits, quantized
from distill.parallel.mesh import batch_sharding, check_rows, make_mesh, weight_sharding
from distill.text.spelling import Classes, Shared
from distill.training.adapters import adapter_shardings, make_adapters
from distill.training.objectives import scheduled
from distill.training.optimizer import make_optimizer
from distill.training.state import Frozen, State, moment_shardings, param_shardings
from distill.training.step import make_step
from distill.training.teacher import Teacher

Shape = jax.ShapeDtypeStruct
ROW = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), jnp.int32) | {"mask": jnp.float32}
"""What `data.loader.Loader.batch` gives for each position."""


ALIGNED = tuple(spans([], 1, 1))
"""What it adds for aligned examples. The teacher's tokens are taken to be as many as the student's."""


class Program(NamedTuple):
    """held: bytes of one device by what they hold, as the closed form has them. `lower` traces the program."""

    held: dict[str, int]
    lower: Callable[[], jax.stages.Lowered]


class Compiled(NamedTuple):
    """The compiler's own figures, bytes of one device. `temporary` is what is neither given nor returned."""

    arguments: int
    temporary: int
    peak: int


def compiled(lowered: jax.stages.Lowered, options: dict[str, Any] | None = None) -> Compiled:
    """Compile, and ask what the program needs. options: the compiler's."""
    found = lowered.compile(options).memory_analysis()
    given, made = found.argument_size_in_bytes, found.output_size_in_bytes - found.alias_size_in_bytes
    return Compiled(given, found.temp_size_in_bytes, given + made + found.temp_size_in_bytes)


def simulated(count: int) -> list[jax.Device]:
    """As many devices of the CPU; asked for before anything is computed, see `scripts/plan.py`."""
    return jax.devices("cpu")[:count]


def train_program(
    config: ModelConfig,
    stage: Stage,
    dtype: str,
    length: int,
    devices: list[jax.Device],
    teacher: tuple[ModelConfig, str] | None = None,
) -> Program:
    """dtype: what frozen weights are stored in. length: positions of a row. teacher: who is asked, and its type.

    The closed form leaves out activations: what `remat` keeps between the passes, and what one layer computes.
    Neither has the projections of hidden states, nor the engine that samples from the student.
    """
    stage = stage.model_copy(update={"hidden_states": None})
    mesh = make_mesh(stage.mesh.sizes, devices)
    for setting in ("micro_batch_size", "batch_size"):
        if size := getattr(stage, setting):
            check_rows(mesh, size, setting)
    whole = stage.lora is None
    params = _scanned(config, jnp.float32 if whole else jnp.dtype(dtype))
    where = param_shardings(config, params, mesh)
    params, frozen = _placed(params, where), None
    if not whole:
        frozen = Frozen(params, stage.lora.alpha / stage.lora.rank)
        where = adapter_shardings(config, stage.lora, mesh)
        params = _placed(jax.eval_shape(lambda: make_adapters(config, stage.lora, stage.seed)), where)
    optimizer = make_optimizer(stage, stage.steps or stage.warmup_steps + 1)
    moments = moment_shardings(optimizer, params, where, mesh)
    state = State(params, _placed(jax.eval_shape(optimizer.init, params), moments))
    rows = batch_sharding(mesh)
    batch = {name: Shape((stage.batch_size, length), kind, sharding=rows) for name, kind in ROW.items()}
    if stage.objective == "topk_logits":
        batch |= _stored_logits(config, stage, length, rows)
    asked = _teacher(*teacher, stage, mesh) if teacher else None
    if stage.objective == "aligned_logits":
        batch |= {name: Shape((stage.batch_size, length), jnp.int32, sharding=rows) for name in ALIGNED}
        asked = asked._replace(shared=_as_much_as_can_be(asked.config.vocab_size, config.vocab_size))
    step = make_step(config, stage, optimizer, mesh, State(where, moments), frozen, asked)
    parts = 1 if (stage.micro_batch_size or stage.batch_size) == stage.batch_size else 2  # of a part, and their sum
    held = {
        "parameters": device_bytes(params) + (0 if whole else device_bytes(frozen.weights)),
        **({"teacher": device_bytes(asked.weights)} if asked else {}),
        "optimizer": device_bytes(state.optimizer),
        "gradients": parts * device_bytes(params),
        "batch": device_bytes(batch),
    }
    return Program(held, partial(step.lower, state, batch, scheduled(stage, 1, 2)))


def _teacher(config: ModelConfig, dtype: str, stage: Stage, mesh: Mesh) -> Teacher:
    """As `load_teacher` leaves it."""
    int8 = stage.teacher_dtype == "int8"
    held = _scanned(config, jnp.dtype(stage.dtype if int8 else stage.teacher_dtype or dtype))
    weights = _placed(held, param_shardings(config, held, mesh))
    return Teacher(config, _eight_bits(weights) if int8 else weights, config.vocab_size)


def _as_much_as_can_be(teacher: int, student: int) -> Shared:
    """The smaller vocabulary is all in the larger, whose other tokens begin with one of it: no two need more."""
    fewest = min(teacher, student)

    def side(size: int) -> Classes:
        of = np.arange(size, dtype=np.int32)
        return Classes(of % fewest, of[:fewest], of[fewest:])

    return Shared(side(teacher), side(student), ())


def _stored_logits(config: ModelConfig, stage: Stage, length: int, rows: jax.sharding.Sharding) -> dict[str, Shape]:
    """What `data.loader.Loader.batch` adds for examples with logits."""
    shape = (stage.batch_size, length, stage.k)
    return {
        "soft_ids": Shape(shape, jnp.uint16 if config.vocab_size <= 1 << 16 else jnp.int32, sharding=rows),
        "soft_logprobs": Shape(shape, jnp.float16, sharding=rows),
        "soft_vocabulary": Shape((stage.batch_size,), jnp.int32, sharding=rows),
    }


def decode_program(config: ModelConfig, settings: Generation, dtype: str, devices: list[jax.Device]) -> Program:
    """All slots in use, and the caches at their full length. dtype: what the teacher's weights are stored in."""
    sizes = settings.mesh.model_dump()
    count = math.prod(sizes.values())
    mesh = make_mesh(sizes, devices[:count]) if count > 1 else None
    params = _unscanned(config, dtype, mesh)
    if "weights" in settings.int8:
        params = _eight_bits(params)
    setup = Setup.of(
        config,
        settings.max_target_length,
        real_vocab=config.vocab_size,
        telling=Telling(**settings.told),
        mesh=mesh,
        int8_cache="cache" in settings.int8,
    )
    caches, lower = decode_on_shapes(setup, params, settings.slots)
    held = {"parameters": device_bytes(params), "cache": device_bytes(caches)}
    return Program(held, lower)


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of arrays that lie as their shapes say; one without a place lies whole."""

    def own(leaf: Shape) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(own(leaf) for leaf in jax.tree.leaves(tree))


def _unscanned(config: ModelConfig, dtype: str, mesh: Mesh | None) -> decoder.Params:
    def shape(path: str, axes: str) -> Shape:
        size = tuple(config.sizes[axis] for axis in axes.split())
        where = None if mesh is None else weight_sharding(mesh, axes, size)
        return Shape(size, decoder.loaded_type(path, dtype), sharding=where)

    return nest({path: shape(path, axes) for path, axes in decoder.weight_axes(config).items()})


def _scanned(config: ModelConfig, dtype: Any) -> decoder.Params:
    return jax.eval_shape(lambda tree: layouts.stack(config, tree), _unscanned(config, dtype, None))


def _placed(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda leaf, place: Shape(leaf.shape, leaf.dtype, sharding=place), tree, where)


def _eight_bits(params: decoder.Params) -> decoder.Params:
    """As `quantize_weights` leaves them; the scale of a row lies with it."""
    out = {}
    for name, value in params.items():
        if isinstance(value, dict):
            out[name] = _eight_bits(value)
        elif in_eight_bits(name, value):
            after = jax.eval_shape(quantized, value)
            out[name] = jax.tree.map(lambda leaf, where=value.sharding: _spread(leaf, where), after)
        else:
            out[name] = value
    return out


def _spread(leaf: Shape, where: Any) -> Shape:
    if where is None:
        return leaf
    spec = [axis if size > 1 else None for axis, size in zip(where.spec, leaf.shape, strict=False)]
    return Shape(leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(where.mesh, jax.P(*spec)))
