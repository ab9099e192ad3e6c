"""Mixture of experts: a router sends each token to a few feed-forward networks, and adds up what they answer.

Three ways to the same sums. A scan over the experts lets each one answer every token, weighted by zero where it
was not asked; or all do so at once; or the asked (token, expert) pairs are sorted by expert and multiplied group by
group. Over a mesh each device answers for its own experts, and a sum over the devices joins them.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from distill.models.config import Experts, ModelConfig
from distill.models.layers import FeedForward, activate, at_least_float32, fan_in, weight, zeros
from distill.parallel.mesh import batch_spec, weight_spec

Way = Literal["scan", "ragged", "all"]
ALL_AT_ONCE = 1024
"""Tokens up to which a GPU lets all experts answer in one product: what they say stays small beside their weights."""


class ExpertWeights(nnx.Module):
    """The gated networks of all experts, stacked."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.gate = weight(config, "E X D", fan_in(config.hidden), rngs)
        self.up = weight(config, "E X D", fan_in(config.hidden), rngs)
        self.down = weight(config, "E D X", fan_in(config.experts.hidden), rngs)


class MixtureOfExperts(nnx.Module):
    """Routed experts, and one shared network that answers every token."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.router = weight(config, "E D", fan_in(config.hidden), rngs)
        self.router_bias = weight(config, "E", zeros, rngs) if config.experts.bias else None
        self.experts = ExpertWeights(config, rngs)
        self.shared = FeedForward(config, rngs, "Y") if config.experts.shared_hidden else None

    def __call__(
        self, x: Float[Array, "B T D"], mesh: Mesh | None = None, asked: list | None = None
    ) -> Float[Array, "B T D"]:
        """mesh: where the experts lie, if they are spread over devices.

        asked: given the router's logits [B, T, E] and its choice [B, T, C], for `balance`.
        """
        # The choice is a step function of the scores: bfloat16 would send tokens elsewhere.
        logits = jnp.einsum(
            "BTD,ED->BTE", x.astype(jnp.float32), self.router[...].astype(jnp.float32), precision="highest"
        )
        bias = None if self.router_bias is None else self.router_bias[...].astype(jnp.float32)
        chosen, shares = route(self.config.experts, logits, bias)
        if asked is not None:
            asked.append((logits, chosen))
        experts = (self.experts.gate[...], self.experts.up[...], self.experts.down[...])
        y = answer(self.config.activation, experts, x, chosen, shares, mesh)
        return y if self.shared is None else y + self.shared(x)


def route(
    experts: Experts, logits: Float[Array, "B T E"], bias: Float[Array, "E"] | None
) -> tuple[Int[Array, "B T C"], Float[Array, "B T C"]]:
    """The experts that each token asks, and the weight of each one's answer.

    With groups (DeepSeek-V2, arXiv 2405.04434, section 2.2.2; V3, arXiv 2412.19437, equations 12 to 16) only
    experts of the best groups are asked. A bias moves the choice, not the weights.
    """
    scores = jax.nn.softmax(logits, axis=-1) if experts.scores == "softmax" else jax.nn.sigmoid(logits)
    ranks = scores if bias is None else scores + bias[None, None]
    if experts.groups > 1:
        grouped = ranks.reshape(*ranks.shape[:-1], experts.groups, -1)
        best = jax.lax.top_k(grouped, 1 if experts.group_score == "max" else 2)[0].sum(axis=-1)
        kept = jax.lax.top_k(best, experts.top_groups)[1]
        allowed = jnp.any(kept[..., None] == jnp.arange(experts.groups)[None, None, None], axis=-2)
        ranks = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(ranks.shape)
    chosen = jax.lax.top_k(ranks, experts.per_token)[1]
    shares = jnp.take_along_axis(scores, chosen, axis=-1)
    if experts.renormalise:
        shares = shares / (shares.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen, shares * experts.scale


def balance(
    experts: Experts, logits: Float[Array, "B T E"], chosen: Int[Array, "B T C"], real: Bool[Array, "B T"]
) -> Float[Array, "B"]:
    """How unevenly the tokens of each row ask their experts: 1 when evenly, E/C when all ask the same ones.

    Σ over e of f·P: E/C times the share of tokens that ask e, and the mean of the router's score of e
    (DeepSeek-V3, arXiv 2412.19437, equations 17 to 20; for one expert a token, Switch, arXiv 2101.03961). Over a
    row's tokens and not over the batch's, so that no split of the batch changes it.
    """
    scores = jax.nn.softmax(logits, axis=-1) if experts.scores == "softmax" else jax.nn.sigmoid(logits)
    scores = scores / jnp.sum(scores, axis=-1, keepdims=True)
    real = real.astype(scores.dtype)[..., None]
    tokens = jnp.maximum(jnp.sum(real, axis=1), 1.0)
    asked = jnp.sum(jax.nn.one_hot(chosen, experts.count, dtype=scores.dtype), axis=2)
    share = experts.count / experts.per_token * jnp.sum(asked * real, axis=1) / tokens
    return jnp.sum(share * jnp.sum(scores * real, axis=1) / tokens, axis=-1)


def answer(
    activation: str,
    experts: tuple[Float[Array, "E X D"], Float[Array, "E X D"], Float[Array, "E D X"]],
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T C"],
    shares: Float[Array, "B T C"],
    mesh: Mesh | None = None,
    way: Way | None = None,
) -> Float[Array, "B T D"]:
    """Sum over c of shares[c] · expert chosen[c] (x). experts: gate, up and down of all of them.

    Over a mesh, rows stay where they are, and each device needs its experts' weights whole but for their own
    part of X; what lies on `fsdp` is gathered on the way in.
    """
    run = partial(WAYS[way or _fastest(x.shape[0] * x.shape[1])], activation)
    if mesh is None or mesh.size == 1:
        return run(0, experts, x, chosen, shares)
    rows = batch_spec(mesh, x.shape[0])
    specs = [weight_spec(mesh, axes, w.shape) for axes, w in zip(("E X D", "E X D", "E D X"), experts, strict=True)]
    specs = tuple(PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec)) for spec in specs)
    parts = tuple(axis for axis in specs[0] if axis is not None)

    def part(experts, x, chosen, shares):
        first = jax.lax.axis_index("expert") * experts[0].shape[0] if "expert" in parts else 0
        return jax.lax.psum(run(first, experts, x, chosen, shares), parts)

    # Without check_vma=False the order that `_by_group` sorts into counts as the same on every device, and
    # the router's gradient comes out wrong without an error.
    spread = jax.shard_map(part, mesh=mesh, in_specs=(specs, rows, rows, rows), out_specs=rows, check_vma=False)
    return spread(experts, x, chosen, shares)


def _fastest(tokens: int) -> Way:
    """The way for so many tokens. On a GPU XLA makes of a ragged product one over all experts (measured on an H100
    with jax 0.11.2, benchmarks/accelerator.py: 5.2 ms for 512 tokens and 64 experts, 1.3 ms all at once)."""
    backend = jax.default_backend()
    if backend == "tpu":
        return "ragged"
    return "all" if backend == "gpu" and tokens <= ALL_AT_ONCE else "scan"


def _by_scan(activation: str, first, experts, x, chosen, shares):
    """One expert after the other answers all tokens; the experts here are number `first` and following."""

    @jax.checkpoint  # or the backward pass keeps what every expert said to every token
    def step(total, one):
        number, gate, up, down = one
        share = jnp.sum(jnp.where(chosen == number, shares, 0.0), axis=-1, keepdims=True)
        hidden = activate(activation, jnp.einsum("BTD,XD->BTX", x, gate)) * jnp.einsum("BTD,XD->BTX", x, up)
        return total + share * jnp.einsum("BTX,DX->BTD", hidden, down), None

    numbers = first + jnp.arange(experts[0].shape[0])
    total, _ = jax.lax.scan(step, jnp.zeros(x.shape, jnp.float32), (numbers, *experts))
    return total.astype(x.dtype)


def _by_group(activation: str, first, experts, x, chosen, shares):
    """Pairs of token and expert in the order of the experts, those of other devices last."""
    count, asked = experts[0].shape[0], chosen.shape[-1]
    number = chosen.reshape(-1) - first
    here = (number >= 0) & (number < count)
    number = jnp.where(here, number, count)
    order = jnp.argsort(number, stable=True)
    sizes = jnp.bincount(number, length=count + 1)[:count].astype(jnp.int32)
    pairs = jnp.broadcast_to(x[:, :, None], (*x.shape[:2], asked, x.shape[2])).reshape(-1, x.shape[2])
    pairs = _permuted(pairs, order)
    gate, up, down = experts
    hidden = activate(activation, _grouped(pairs, gate, sizes)) * _grouped(pairs, up, sizes)
    y = _permuted(_grouped(hidden, down, sizes), jnp.argsort(order))
    y = jnp.where(here[:, None], y, 0).reshape(*x.shape[:2], asked, x.shape[2])
    return jnp.sum(shares[..., None] * y, axis=2).astype(x.dtype)


def _all_at_once(activation: str, first, experts, x, chosen, shares):
    """Every expert answers all tokens, in two products: where few tokens ask, all weights are read anyway."""
    gate, up, down = experts
    numbers = first + jnp.arange(gate.shape[0])
    share = jnp.sum(jnp.where(chosen[..., None] == numbers[None, None, None], shares[..., None], 0.0), axis=2)
    hidden = activate(activation, jnp.einsum("BTD,EXD->BTEX", x, gate)) * jnp.einsum("BTD,EXD->BTEX", x, up)
    hidden = (hidden * share[..., None]).astype(x.dtype)
    y = jnp.einsum("BTEX,EDX->BTD", hidden, down, preferred_element_type=at_least_float32(x))
    return y.astype(x.dtype)


def _permuted(rows: Float[Array, "M D"], order: Int[Array, "M"]) -> Float[Array, "M D"]:
    """Rows in another order. Saying that it is one keeps the gradient free of additions in random order."""
    return rows.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _grouped(rows: Float[Array, "M D"], weights: Float[Array, "E F D"], sizes: Int[Array, "E"]) -> Float[Array, "M F"]:
    """Consecutive rows, sizes[e] of them, times the transpose of weights[e]."""
    dimensions = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=(0,)
    )
    return jax.lax.ragged_dot_general(rows, weights, sizes, dimensions)


WAYS = {"scan": _by_scan, "ragged": _by_group, "all": _all_at_once}
