"""The decoder, as pure functions over a tree of weights.

The tree is nested dictionaries of arrays, in one of two layouts (`models/layouts.py` makes one of the other):

    unscanned   {"embed", "layers": {"0": block, "1": block, ...}, "norm", "head"}     for decoding
    scanned     {"embed", "stacks": {"0": blocks with a leading L}, "norm", "head"}    for training

`head` is absent where it is tied to `embed`. Modules are flax.nnx; they live only inside a trace.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from distill.models.attention import Attention, causal_mask
from distill.models.cache import Caches, LayerCache, cache_mask, slots_for, slots_of, write_slots
from distill.models.config import Layer, ModelConfig
from distill.models.int8 import wide
from distill.models.layers import FeedForward, Norm, at_least_float32, column, product, weight
from distill.models.lora import Adapters, merged
from distill.models.mla import LatentAttention
from distill.models.moe import MixtureOfExperts, balance
from distill.models.panels import Panels, for_rows
from distill.models.rope import Rotation, rotation, sequence_lengths

Params = dict[str, Any]
Remat = Literal["none", "dots", "full"]

REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
"""What the backward pass finds: the products with weights, or the block's input alone."""


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: ModelConfig, layer: Layer, rngs: nnx.Rngs):
        self.attention_norm = Norm(config, rngs)
        self.attention = (LatentAttention if config.latent else Attention)(config, rngs)
        self.attention_post_norm = Norm(config, rngs) if config.post_norms else None
        self.ffn_norm = Norm(config, rngs)
        self.ffn = (MixtureOfExperts if layer.experts else FeedForward)(config, rngs)
        self.ffn_post_norm = Norm(config, rngs) if config.post_norms else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        turn: Rotation,
        mask: Bool[Array, "B T S"],
        cache: LayerCache | None = None,
        slots: Int[Array, "B T"] | None = None,
        room: int | None = None,
        mesh: Mesh | None = None,
        asked: list | None = None,
        only: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """asked: see `MixtureOfExperts`. only: the column of each row whose state is wanted, [B, 1, D] then."""
        y, cache = self.attention(self.attention_norm(x), turn, mask, cache, slots, room, only)
        x = x if only is None else column(x, only)
        x = x + (y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.ffn_norm(x)
        y = self.ffn(y, mesh, asked) if isinstance(self.ffn, MixtureOfExperts) else self.ffn(y)
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


def keeps_type(path: str) -> bool:
    """Whether a weight is stored in the type that it came in, whatever the model's.

    DeepSeek-V3 has its router's bias in float32: bfloat16 would change who is asked.
    """
    return path.endswith(".router_bias")


def loaded_type(path: str, dtype: Any) -> Any:
    """What a weight is computed with in a model of type `dtype`."""
    return jnp.dtype(jnp.float32 if keeps_type(path) else dtype)


def _axes(prefix: str, state: nnx.State) -> dict[str, str]:
    return {prefix + ".".join(path): leaf.axes for path, leaf in nnx.to_flat_state(state)}


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
    positions: Int[Array, "B T"] | None = None,
    *,
    remat: Remat = "none",
    mesh: Mesh | None = None,
    dtype: Any = None,
    adapters: Adapters | None = None,
) -> Float[Array, "B T D"]:
    """Hidden states behind the last norm, for whole sequences, in either layout; see `logits`.

    segments: 0 is padding, other numbers tell packed examples apart; all ones by default.
    positions: for RoPE, restarting in each packed example; 0, 1, 2, ... by default.
    remat: what of a block the backward pass computes again instead of keeping it, see `REMAT`.
    mesh: where weights and batch lie, if they are spread; only a mixture of experts needs to know.
    dtype: computed in, where that is not the weights' own; a layer is cast when its turn comes.
    adapters: low-rank changes of the weights (`models/lora.py`), for the scanned layout.
    """
    how = {"remat": remat, "mesh": mesh, "dtype": dtype, "adapters": adapters}
    return forward_with_balance(config, params, tokens, segments, positions, **how, balanced=False)[0]


def forward_with_balance(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
    positions: Int[Array, "B T"] | None = None,
    *,
    remat: Remat = "none",
    mesh: Mesh | None = None,
    dtype: Any = None,
    adapters: Adapters | None = None,
    balanced: bool = True,
    states: list | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B"]]:
    """`forward`, and the mean over the layers with experts of each row's `moe.balance`; zero if not `balanced`.

    states: a list that gets what each layer gives, [L, B, T, D] of some layers at a time, in their order.
    """
    segments = jnp.ones_like(tokens) if segments is None else segments
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    lengths = sequence_lengths(positions, segments[:, :, None] == segments[:, None, :])
    turns = [rotation(rope, positions, lengths) for rope in config.ropes]
    x = embedded(config, params, tokens)
    x = x if dtype is None else x.astype(dtype)
    uneven = jnp.zeros(tokens.shape[0], jnp.float32)

    def block(layer: Layer, x: Array, weights: Params, window: Any, turn: Rotation) -> tuple[Array, Array]:
        module = nnx.merge(_block(config, structure(layer))[0], nnx.State(_cast(wide(weights), dtype)))
        asked: list | None = [] if balanced else None
        x = module(x, turn, causal_mask(segments, window), mesh=mesh, asked=asked)[0]
        rows = [balance(config.experts, logits, chosen, segments > 0) for logits, chosen in asked or ()]
        return x, sum(rows, jnp.zeros_like(uneven))

    if "layers" in params:
        for i, layer in enumerate(config.layers):
            run = _recomputed(partial(block, layer), remat, static_argnums=(2,))
            x, more = run(x, params["layers"][str(i)], layer.window, turns[layer.rope])
            uneven += more
            if states is not None:
                states.append(x[None])
    for s, (start, stop) in enumerate(config.stacks if "stacks" in params else ()):
        layers = config.layers[start:stop]
        windows = jnp.asarray([layer.window or tokens.shape[1] for layer in layers], jnp.int32)
        ropes = jnp.asarray([layer.rope for layer in layers], jnp.int32)
        choices = jax.tree.map(lambda *parts: jnp.stack(parts), *turns)

        def step(x, scanned, layer=layers[0], choices=choices):
            weights, changes, window, rope = scanned
            weights = weights if adapters is None else merged(weights, changes, adapters.scale)
            x, more = block(layer, x, weights, window, jax.tree.map(lambda a: a[rope], choices))
            return x, (more, None if states is None else x)

        changes = None if adapters is None else adapters.tree["stacks"].get(str(s), {})
        scanned = params["stacks"][str(s)], changes, windows, ropes
        x, (more, given) = jax.lax.scan(_recomputed(step, remat), x, scanned)
        uneven += jnp.sum(more, axis=0)
        if states is not None:
            states.append(given)
    experts = sum(layer.experts for layer in config.layers)
    return _norm(config, params, x), uneven / max(1, experts)


def extend(
    config: ModelConfig,
    params: Params,
    caches: Caches,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    valid: Int[Array, "B T"],
    *,
    room: int | None = None,
    mesh: Mesh | None = None,
    only: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, "B T D"], Caches]:
    """Append tokens to caches (a prompt, or one token a row) and return their hidden states.

    params: unscanned; matrices may be in eight bits (`models/int8.py`), and so may the caches.
    caches: of `models.cache.empty_cache`, with its `chunk` no less than T.
    positions: where each token stands, one more than the one before it.
    valid: 0 for padding, which is neither written nor seen, nor, where products are our own code, computed.
    room: positions that the caches may grow to. A token that is appended alone gets the same bits whatever
        their size is now.
    mesh: as for `forward`.
    only: the column of each row whose hidden state is wanted, [B, 1, D] then. Of the last layer the others need keys
        and values alone.
    """
    turns = [rotation(rope, positions) for rope in config.ropes]
    last = jnp.max(jnp.where(valid > 0, positions, -1), axis=1)
    x, written = embedded(config, params, tokens), []
    for i, layer in enumerate(config.layers):
        most = None if room is None else slots_for(layer, room)
        seen = positions, last, valid, turns[layer.rope]
        wanted = only if i + 1 == len(config.layers) else None
        x, cache = _extend_block(config, layer, most, mesh, params["layers"][str(i)], x, caches[i], *seen, wanted)
        written.append(cache)
    return _norm(config, params, x), written


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _extend_block(config, layer, room, mesh, weights, x, cache, positions, last, valid, turn, only):
    """One layer of `extend`. A function of its own, so that layers that are alike are traced once."""
    module = block(config, layer, weights if only is not None else for_rows(weights, valid > 0))
    size = slots_of(cache)
    mask = cache_mask(positions, last, size, layer.window)
    return module(x, turn, mask, cache, write_slots(positions, valid, size), room, mesh, only=only)


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Scores of the next token, float32."""
    return scores(config, hidden, wide(params["embed"] if config.tied else params["head"]))


def scores(
    config: ModelConfig, hidden: Float[Array, "... D"], head: Float[Array, "V D"] | Panels
) -> Float[Array, "... V"]:
    """`logits`, with the head given apart."""
    if hidden.ndim == 3:
        values = product(hidden, head, wide=True)
    else:
        values = jnp.einsum("...D,VD->...V", hidden, head, preferred_element_type=at_least_float32(hidden))
    if config.logit_softcap is not None:
        values = config.logit_softcap * jnp.tanh(values / config.logit_softcap)
    return values


def _recomputed(run: Callable, remat: Remat, **static: Any) -> Callable:
    return run if remat == "none" else jax.checkpoint(run, policy=REMAT[remat], **static)


def _cast(weights: Params, dtype: Any) -> Params:
    """Weights of a block in another type, but for those that keep theirs."""
    if dtype is None:
        return weights
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(loaded_type(f".{path[-1].key}", dtype)), weights
    )


def block(config: ModelConfig, layer: Layer, weights: Params) -> Block:
    """A layer of the unscanned tree as a module."""
    return nnx.merge(_block(config, structure(layer))[0], nnx.State(wide(weights)))


def embedded(config: ModelConfig, params: Params, tokens: Array) -> Array:
    """What the first layer is given."""
    x = wide(params["embed"][tokens])
    return x if config.embed_scale == 1.0 else x * jnp.asarray(config.embed_scale, x.dtype)


def _norm(config: ModelConfig, params: Params, x: Array) -> Array:
    ends = {name: value for name, value in params.items() if name not in ("layers", "stacks")}
    ends["norm"] = _cast(ends["norm"], x.dtype)
    return nnx.merge(_ends(config)[0], nnx.State(wide(ends))).norm(x)
