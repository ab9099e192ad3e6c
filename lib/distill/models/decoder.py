"""The decoder, as pure functions over a tree of weights.

The tree is nested dictionaries of arrays, in one of two layouts:

    unscanned   {"embed", "layers": {"0": block, "1": block, ...}, "norm", "head"}     for decoding
    scanned     {"embed", "stacks": {"0": blocks with a leading L}, "norm", "head"}    for training

`head` is absent where it is tied to `embed`. Modules are flax.nnx; they live only inside a trace.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from distill.models.attention import Attention, LayerCache, cache_mask, causal_mask
from distill.models.config import Layer, ModelConfig
from distill.models.layers import FeedForward, Norm, weight
from distill.models.rope import rotation

Params = dict[str, Any]


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: ModelConfig, layer: Layer, rngs: nnx.Rngs):
        self.attention_norm = Norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.attention_post_norm = Norm(config, rngs) if config.post_norms else None
        self.ffn_norm = Norm(config, rngs)
        self.ffn = FeedForward(config, rngs)
        self.ffn_post_norm = Norm(config, rngs) if config.post_norms else None

    def __call__(self, x, rotation, mask, cache=None, slots=None, *, interleaved=False):
        y, cache = self.attention(
            self.attention_norm(x), rotation, mask, cache, slots, interleaved=interleaved
        )
        x = x + (y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.ffn(self.ffn_norm(x))
        return x + (y if self.ffn_post_norm is None else self.ffn_post_norm(y)), cache


class Ends(nnx.Module):
    """What stands before the first block and behind the last one."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        normal = lambda key, shape: 0.02 * jax.random.normal(key, shape)  # noqa: E731
        self.embed = weight(config, "V D", normal, rngs)
        self.norm = Norm(config, rngs)
        self.head = None if config.tied else weight(config, "V D", normal, rngs)


@cache
def _block(config: ModelConfig, layer: Layer) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure of a block and its abstract weights; layers that differ in window or rope alone share it."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, layer, nnx.Rngs(0))))


@cache
def _ends(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Ends(config, nnx.Rngs(0))))


def structure(layer: Layer) -> Layer:
    """The part of a layer that decides which weights it has."""
    return Layer(experts=layer.experts)


def init(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random unscanned weights."""
    keys = jax.random.split(key, len(config.layers) + 1)
    params = nnx.to_pure_dict(nnx.state(Ends(config, nnx.Rngs(params=keys[0]))))
    params["layers"] = {
        str(i): nnx.to_pure_dict(nnx.state(Block(config, structure(layer), nnx.Rngs(params=keys[i + 1]))))
        for i, layer in enumerate(config.layers)
    }
    return jax.tree.map(lambda a: a.astype(dtype), params)


def weight_axes(config: ModelConfig) -> dict[str, str]:
    """Every weight of the unscanned tree by its dotted path, such as `layers.0.attention.q`: its axes."""
    axes = _axes("", _ends(config)[1])
    for i, layer in enumerate(config.layers):
        axes |= _axes(f"layers.{i}.", _block(config, structure(layer))[1])
    return axes


def _axes(prefix: str, state: nnx.State) -> dict[str, str]:
    return {prefix + ".".join(path): leaf.axes for path, leaf in nnx.to_flat_state(state)}


def stack(config: ModelConfig, params: Params) -> Params:
    """Unscanned to scanned, a weight at a time; `params` is emptied on the way, so no second copy is held."""
    layers, stacks = params.pop("layers"), {}
    for s, (start, stop) in enumerate(config.stacks):
        blocks = [jax.tree.flatten(layers.pop(str(i))) for i in range(start, stop)]
        tree, columns = blocks[0][1], [leaves for leaves, _ in blocks]
        stacked = []
        for j in range(tree.num_leaves):
            stacked.append(jnp.stack([column[j] for column in columns]))
            for column in columns:
                column[j] = None
        stacks[str(s)] = jax.tree.unflatten(tree, stacked)
    return {**params, "stacks": stacks}


def unstack(config: ModelConfig, params: Params) -> Params:
    """Scanned to unscanned."""
    layers = {}
    for s, (start, stop) in enumerate(config.stacks):
        for i in range(start, stop):
            layers[str(i)] = jax.tree.map(lambda a, j=i - start: a[j], params["stacks"][str(s)])
    return {**{k: v for k, v in params.items() if k != "stacks"}, "layers": layers}


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
    positions: Int[Array, "B T"] | None = None,
    *,
    remat: bool = False,
) -> Float[Array, "B T D"]:
    """Hidden states behind the last norm, for whole sequences, in either layout; see `logits`.

    segments: 0 is padding, other numbers tell packed examples apart; all ones by default.
    positions: for RoPE, restarting in each packed example; 0, 1, 2, ... by default.
    remat: recompute each block in the backward pass instead of keeping its activations.
    """
    segments = jnp.ones_like(tokens) if segments is None else segments
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    turns = [rotation(rope, positions) for rope in config.ropes]
    x = _embed(config, params, tokens)

    def block(layer: Layer, x: Array, weights: Params, window: Any, turn: tuple[Array, Array]) -> Array:
        module = nnx.merge(_block(config, structure(layer))[0], nnx.State(weights))
        mask = causal_mask(segments, window)
        return module(x, turn, mask, interleaved=config.ropes[layer.rope].interleaved)[0]

    if "layers" in params:
        for i, layer in enumerate(config.layers):
            run = partial(block, layer)
            run = jax.checkpoint(run, static_argnums=(2,)) if remat else run
            x = run(x, params["layers"][str(i)], layer.window, turns[layer.rope])
        return _norm(config, params, x)
    for s, (start, stop) in enumerate(config.stacks):
        layers = config.layers[start:stop]
        windows = jnp.asarray([layer.window or tokens.shape[1] for layer in layers], jnp.int32)
        ropes = jnp.asarray([layer.rope for layer in layers], jnp.int32)
        choices = jax.tree.map(lambda *parts: jnp.stack(parts), *turns)

        def step(x, scanned, layer=layers[0], choices=choices):
            weights, window, rope = scanned
            return block(layer, x, weights, window, jax.tree.map(lambda a: a[rope], choices)), None

        step = jax.checkpoint(step) if remat else step
        x, _ = jax.lax.scan(step, x, (params["stacks"][str(s)], windows, ropes))
    return _norm(config, params, x)


def extend(
    config: ModelConfig,
    params: Params,
    caches: list[LayerCache],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    valid: Int[Array, "B T"],
    span: int,
) -> tuple[Float[Array, "B T D"], list[LayerCache]]:
    """Append tokens to a cache (a prompt, or one token a row) and return their hidden states.

    positions: where each token stands, which is also its slot in the cache.
    valid: 0 for padding, which is neither written nor seen.
    span: slots that are attended; every valid position is below it.
    """
    turns = [rotation(rope, positions) for rope in config.ropes]
    x, written = _embed(config, params, tokens), []
    for i, layer in enumerate(config.layers):
        module = nnx.merge(_block(config, structure(layer))[0], nnx.State(params["layers"][str(i)]))
        length = caches[i]["k"].shape[2]
        slots = jnp.where(valid > 0, positions, length)
        mask = cache_mask(positions, span, layer.window)
        interleaved = config.ropes[layer.rope].interleaved
        x, cache = module(x, turns[layer.rope], mask, caches[i], slots, interleaved=interleaved)
        written.append(cache)
    return _norm(config, params, x), written


def empty_cache(config: ModelConfig, batch: int, length: int, dtype: Any) -> list[LayerCache]:
    """A cache array a layer, [B, K, S, H] each: appending to one moves no other."""
    shape = (batch, config.kv_heads, length, config.head_dim)
    return [{"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)} for _ in config.layers]


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Scores of the next token, float32."""
    head = params["embed"] if config.tied else params["head"]
    scores = jnp.einsum("...D,VD->...V", hidden, head, preferred_element_type=jnp.float32)
    if config.logit_softcap is not None:
        scores = config.logit_softcap * jnp.tanh(scores / config.logit_softcap)
    return scores


def _embed(config: ModelConfig, params: Params, tokens: Array) -> Array:
    x = params["embed"][tokens]
    return x if config.embed_scale == 1.0 else x * jnp.asarray(config.embed_scale, x.dtype)


def _norm(config: ModelConfig, params: Params, x: Array) -> Array:
    ends = {name: value for name, value in params.items() if name not in ("layers", "stacks")}
    return nnx.merge(_ends(config)[0], nnx.State(ends)).norm(x)
