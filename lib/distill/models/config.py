"""The architecture of one model: what the decoder must know, whatever family it comes from."""

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Frozen and hashable: it keys compiled functions."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Scaling(Part):
    """How a family stretches its rotary embedding to a longer context; `kind` says which fields count."""

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float
    original: int | None = None  # context of the unscaled model, in tokens; linear has none
    low: float = 1.0  # llama3: wavelengths over original/low are slowed
    high: float = 4.0  # llama3: wavelengths under original/high are kept
    beta_fast: float = 32.0  # yarn: rotations over the original context above which nothing changes
    beta_slow: float = 1.0  # yarn: rotations below which the factor counts in full
    truncate: bool = True  # yarn: the two bounds are rounded outwards to whole pairs
    mscale: float | None = None  # yarn in DeepSeek: cosine and sine grow by the ratio of these two, and the
    mscale_all_dim: float | None = None  # softmax scale by the square of this one
    attention_factor: float | None = None  # yarn, longrope: cosine and sine times this, not what follows
    short: tuple[float, ...] = ()  # longrope: a divisor a pair, for sequences within the original context
    long: tuple[float, ...] = ()  # and for longer ones


class Rope(Part):
    """Rotary position embedding (Su et al., arXiv 2104.09864) of the leading `width` of each head."""

    theta: float
    width: int
    scaling: Scaling | None = None


class Layer(Part):
    """What one layer may have different from the next."""

    window: int | None = None  # a query sees this many positions, itself included; None: all
    rope: int = 0  # index into `ModelConfig.ropes`
    experts: bool = False  # a mixture of experts in place of the dense FFN


class Experts(Part):
    """Mixture of experts: `per_token` of `count` experts answer, and `shared` width answers always."""

    count: int
    per_token: int
    hidden: int
    shared_hidden: int = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False  # added to the scores for the choice only (DeepSeek-V3)
    groups: int = 1  # a token's experts come from the best `top_groups` of so many equal groups,
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"  # each judged by its best expert, or its best two
    renormalise: bool = True  # the chosen weights sum to one
    scale: float = 1.0  # then they are multiplied by this


class Latent(Part):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): widths of its parts.

    A query or key head is `nope` widths without position and `rope` with; `ModelConfig.head_dim` is both.
    """

    q_rank: int | None  # None: queries are projected at once
    kv_rank: int
    nope: int
    rope: int
    value: int


class ModelConfig(Part):
    """One decoder-only transformer."""

    family: str
    vocab_size: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    ropes: tuple[Rope, ...]
    rope_interleaved: bool = False  # pairs (0,1), (2,3), ... instead of (0, width/2), (1, width/2+1), ...
    max_positions: int
    norm_eps: float
    norm_offset: float = 0.0  # 1.0: the stored scale is around zero (Gemma)
    activation: Literal["silu", "gelu_tanh"] = "silu"
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False  # a second norm behind attention and FFN (Gemma)
    embed_scale: float = 1.0
    attention_scale: float
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    latent: Latent | None = None
    experts: Experts | None = None

    @property
    def stacks(self) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of consecutive layers with one structure: what a scan runs over."""
        cuts = [i for i, layer in enumerate(self.layers) if i and layer.experts != self.layers[i - 1].experts]
        edges = [0, *cuts, len(self.layers)]
        return tuple(pairwise(edges))

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each named axis of a weight."""
        latent, experts = self.latent, self.experts
        return {
            "V": self.vocab_size, "D": self.hidden, "F": self.ffn,
            "N": self.heads, "K": self.kv_heads, "H": self.head_dim,
            **({"Q": latent.q_rank or 0, "R": latent.kv_rank, "U": latent.rope, "W": latent.value,
                "Z": latent.nope + latent.value} if latent else {}),
            **({"E": experts.count, "X": experts.hidden, "Y": experts.shared_hidden} if experts else {}),
        }  # fmt: skip

    def reaching(self, length: int) -> "ModelConfig":
        """The same model, for sequences that all count as `length` tokens long.

        LongRoPE has two sets of factors and takes the long one for a sequence beyond the original context.
        Keys in a cache are rotated already, so a sequence that grows needs one set from its start.
        """

        def settled(rope: Rope) -> Rope:
            scaling = rope.scaling
            if scaling is None or scaling.kind != "longrope":
                return rope
            factors = scaling.long if length > scaling.original else scaling.short
            both = scaling.model_copy(update={"short": factors, "long": factors})
            return rope.model_copy(update={"scaling": both})

        return self.model_copy(update={"ropes": tuple(settled(rope) for rope in self.ropes)})
