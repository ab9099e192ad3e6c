"""Full-size models on one accelerator: decoding, a LoRA step, the ways of a mixture of experts, and equal bits.

    python benchmarks/accelerator.py [PART ...] --model recipes/models/deepseek-ai/DeepSeek-V2-Lite-Chat

Weights are random, made on the device from config.json alone: speed does not depend on what they say. Parts:

\b
limits   what one matrix product and one copy reach, against which the others are given
decode   new tokens/s of the engine, and the share of the limit that reading weights and caches sets
bits     the same requests in another order, beside other neighbours: tokens and log-probabilities that differ
experts  seconds of each way through one layer of experts, by tokens
train    a LoRA step: tokens/s, share of the product's rate, peak memory against the plan's closed form

Each line of the output is a JSON object.
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from machine import footer, installed

from distill.checkpoints.store import nest
from distill.config.stages import Stage
from distill.files import read_json
from distill.generation.engine import Engine
from distill.generation.requests import Request
from distill.models import decoder, layouts, moe
from distill.models.config import ModelConfig
from distill.models.families import config_from_hf
from distill.parallel.mesh import make_mesh
from distill.parallel.runtime import start
from distill.planning.models import parameters
from distill.planning.programs import train_program
from distill.training.adapters import adapter_shardings, make_adapters
from distill.training.optimizer import make_optimizer
from distill.training.speed import token_operations
from distill.training.state import Frozen, State, moment_shardings, param_shardings
from distill.training.step import make_step

PROMPT, NEW = 40, 256
Found = dict[str, Any]


def main_limits(config: ModelConfig, slots: list[int], length: int) -> Iterator[Found]:
    size = 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a.T)
    copied = jax.jit(lambda a: a + 1)
    wide = jnp.zeros((1 << 30,), jnp.bfloat16)
    yield {
        "tflops": 2 * size**3 / best(product, a) / 1e12,
        "copy_gbs": 2 * wide.nbytes / best(copied, wide) / 1e9,
    }


def main_decode(config: ModelConfig, slots: list[int], length: int) -> Iterator[Found]:
    params = random_weights(config)
    for count in slots:
        engine = Engine(config, params, slots=count, max_length=length, real_vocab=config.vocab_size)
        asked = requests(config, 2 * count, NEW)
        list(engine.run(requests(config, count, 16)))  # compiles
        list(engine.run(requests(config, count, NEW)))
        before = time.perf_counter()
        tokens = sum(len(result.tokens) for _, result in engine.run(asked))
        seconds = time.perf_counter() - before
        read = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + (0 if config.tied else -params["embed"].nbytes)
        yield {
            "slots": count, "tokens_s": tokens / seconds, "step_ms": 1e3 * seconds / (tokens / count),
            "weights_gb": read / 1e9, "gbs": read * tokens / count / seconds / 1e9, "peak_gb": peak_memory(),
        }  # fmt: skip
        del engine


def main_bits(config: ModelConfig, slots: list[int], length: int) -> Iterator[Found]:
    params, count = random_weights(config), slots[0]

    def answers(asked: list[Request], neighbours: list[Request]) -> dict[tuple, tuple]:
        engine = Engine(config, params, slots=count, max_length=length, real_vocab=config.vocab_size)
        mixed = [*neighbours, *asked]
        np.random.default_rng(len(neighbours)).shuffle(mixed)
        found = {mixed[i]: result for i, result in engine.run(mixed)}
        return {request: (found[request].tokens, found[request].logprobs) for request in asked}

    asked = requests(config, 2 * count, 128)
    alone, beside = answers(asked, []), answers(asked, requests(config, count + 3, 90, seed=7, prompt=77))
    differ = [request for request in asked if alone[request] != beside[request]]
    yield {
        "slots": count, "samples": len(asked), "tokens": sum(len(tokens) for tokens, _ in alone.values()),
        "samples_that_differ": len(differ),
        "tokens_that_differ": sum(
            a != b for r in differ for a, b in zip(alone[r][0], beside[r][0], strict=True)
        ),
    }  # fmt: skip


def main_experts(config: ModelConfig, slots: list[int], length: int) -> Iterator[Found]:
    if config.experts is None:
        return
    layer = next(i for i, layer in enumerate(config.layers) if layer.experts)
    weights = random_weights(config, only=f"layers.{layer}.ffn.experts.")["layers"][str(layer)]["ffn"]["experts"]
    experts = weights["gate"], weights["up"], weights["down"]
    for tokens in (64, 512, 8192):
        x = jax.random.normal(jax.random.key(1), (1, tokens, config.hidden), jnp.bfloat16)
        logits = jax.random.normal(jax.random.key(2), (1, tokens, config.experts.count), jnp.float32)
        chosen, shares = moe.route(config.experts, logits, None)
        wanted = None
        for way in moe.WAYS:
            run = partial(moe.answer, config.activation, way=way)

            def slope(experts, x, chosen, shares, run=run):
                return jax.grad(lambda e, x: jnp.sum(run(e, x, chosen, shares).astype(jnp.float32)), (0, 1))(experts, x)

            found: Found = {"way": way, "tokens": tokens}
            try:
                y = jax.jit(run)(experts, x, chosen, shares).astype(jnp.float32)
                wanted = y if wanted is None else wanted
                found["difference"] = float(jnp.max(jnp.abs(y - wanted)) / jnp.max(jnp.abs(wanted)))
                found["forward_ms"] = 1e3 * best(jax.jit(run), experts, x, chosen, shares)
                if tokens == 8192:
                    found["gradient_ms"] = 1e3 * best(jax.jit(slope), experts, x, chosen, shares)
            except Exception as error:  # a way that does not fit or is not there: the others still tell
                found["error"] = str(error)[:200]
            yield found


def main_train(config: ModelConfig, slots: list[int], length: int) -> Iterator[Found]:
    for rows in (4, 8):
        stage = Stage(
            init="-", steps=100, batch_size=rows, max_length=length, learning_rate=1e-4, dtype="bfloat16",
            remat="full", lora={"rank": 16, "alpha": 32}, mesh={"fsdp": 1},
        )  # fmt: skip
        mesh = make_mesh(stage.mesh.sizes)
        optimizer = make_optimizer(stage, 100)
        held = train_program(config, stage, "bfloat16", length, jax.devices()).held
        weights = random_weights(config, scanned=True)
        frozen = Frozen(jax.device_put(weights, param_shardings(config, weights, mesh)), 2.0)
        del weights
        where = adapter_shardings(config, stage.lora, mesh)
        params = jax.jit(lambda stage=stage: make_adapters(config, stage.lora, 0), out_shardings=where)()
        moments = moment_shardings(optimizer, params, where, mesh)
        state = State(params, jax.jit(optimizer.init, out_shardings=moments)(params))
        step = make_step(config, stage, optimizer, mesh, State(where, moments), frozen)
        ids = np.random.default_rng(0).integers(3, config.vocab_size, (rows, length + 1)).astype(np.int32)
        batch = {
            "tokens": ids[:, :-1], "targets": ids[:, 1:], "mask": np.ones((rows, length), np.float32),
            "segment_ids": np.ones((rows, length), np.int32),
            "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        }  # fmt: skip
        seconds = []
        for _ in range(4):
            before = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - before)
        fastest = min(seconds[1:])
        work = rows * length * token_operations(config, length, backward=1)
        yield {
            "rows": rows, "length": length, "loss": float(metrics["loss"]), "compile_s": seconds[0] - fastest,
            "tokens_s": rows * length / fastest, "tflops": work / fastest / 1e12,
            "plan_gb": sum(held.values()) / 1e9, "peak_gb": peak_memory(),
        }  # fmt: skip
        del frozen, state, step, params


def random_weights(config: ModelConfig, *, only: str = "", scanned: bool = False) -> decoder.Params:
    """bfloat16, or what a weight keeps whatever is asked for; a scale of one over the square root of the last axis."""

    @partial(jax.jit, static_argnums=(1, 2))
    def make(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
        if len(shape) == 1:
            return jnp.ones(shape, dtype)
        return (jax.random.normal(key, shape, jnp.bfloat16) / np.sqrt(shape[-1])).astype(dtype)

    found = {}
    for i, (path, axes) in enumerate(decoder.weight_axes(config).items()):
        if path.startswith(only):
            shape = tuple(config.sizes[axis] for axis in axes.split())
            dtype = jnp.dtype(decoder.loaded_type(path, "bfloat16")).name
            found[path] = make(jax.random.key(i), shape, dtype)
    return layouts.stack(config, nest(found)) if scanned else nest(found)


def requests(config: ModelConfig, count: int, new: int, seed: int = 1, prompt: int = PROMPT) -> list[Request]:
    random = np.random.default_rng(seed)
    return [Request(tuple(random.integers(3, config.vocab_size, prompt).tolist()), seed, i, new) for i in range(count)]


def best(run: Callable, *given: Any, rounds: int = 5) -> float:
    """Seconds of the fastest round."""
    jax.block_until_ready(run(*given))
    seconds = []
    for _ in range(rounds):
        before = time.perf_counter()
        jax.block_until_ready(run(*given))
        seconds.append(time.perf_counter() - before)
    return min(seconds)


def peak_memory() -> float | None:
    """Most bytes that the device held at once since the process began, in GB; None where it does not tell."""
    told = jax.devices()[0].memory_stats()
    return told and told["peak_bytes_in_use"] / 1e9


PARTS = {name.removeprefix("main_"): run for name, run in list(globals().items()) if name.startswith("main_")}


@click.command(help=__doc__)
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--model", required=True, type=click.Path(path_type=Path), help="a folder with config.json")
@click.option("--slots", multiple=True, type=int, default=(64,), show_default=True)
@click.option("--length", default=2048, show_default=True, help="positions of a cache or a row")
@click.option("--layers", type=int, help="as many layers instead of all")
def main(parts: tuple[str, ...], model: Path, slots: tuple[int, ...], length: int, layers: int | None) -> None:
    start()
    config = config_from_hf(read_json(model / "config.json"))
    config = config.model_copy(update={"layers": config.layers[:layers]})
    tell(model=model.name, parameters=parameters(config), device=jax.devices()[0].device_kind)
    for part in parts or PARTS:
        for found in PARTS[part](config, list(slots), length):
            tell(part=part, **found)
    tell(machine=footer(installed("jax", "flax")))


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
