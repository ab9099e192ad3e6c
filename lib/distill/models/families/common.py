"""What the families share: reading a Hugging Face configuration, rotary embeddings, and most of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.errors import DistillError
from distill.models.config import Layer, ModelConfig, Rope, Scaling
from distill.models.table import Row

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
OURS, THEIRS = "layers.{layer}.", "model.layers.{layer}."
ATTENTION, MLP = THEIRS + "self_attn.", THEIRS + "mlp."


class HfConfig:
    """A `config.json`, read field by field; a field that is missing or of another type is a DistillError."""

    def __init__(self, values: dict[str, Any], where: str = ""):
        self.values, self.where = values, where

    def get(self, name: str, default: Any = None) -> Any:
        """The field as it is, or the default where it is absent or null."""
        value = self.values.get(name)
        return default if value is None else value

    def int(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        return int(self._typed(name, default, int))

    def number_or_none(self, name: str) -> float | None:
        """A number, or None where the field is absent or null."""
        return None if self.get(name) is None else self.float(name)

    def float(self, name: str, default: float | None = None) -> float:
        """A number."""
        return float(self._typed(name, default, (int, float)))

    def bool(self, name: str, default: bool) -> bool:
        """True or false."""
        return bool(self._typed(name, default, bool))

    def part(self, name: str) -> "HfConfig":
        """The object in a field; an empty one where it is absent or null."""
        return HfConfig(self._typed(name, {}, dict), f"{self.where}{name}.")

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._typed(name, None, list)
        if not all(isinstance(number, (int, float)) for number in value):
            raise DistillError(f"config.json: {self.where}{name} is {value!r}, expected a list of numbers")
        return tuple(float(number) for number in value)

    def only(self, name: str, *supported: Any) -> None:
        """Refuse a value that would make another model than the decoder runs; absent and null are fine."""
        value = self.values.get(name)
        if value is not None and value not in supported:
            known = " or ".join(map(repr, supported))
            raise DistillError(f"config.json: {self.where}{name} is {value!r}, only {known} is supported")

    def activation(self, name: str, default: str) -> str:
        """The activation in our words."""
        self.only(name, *ACTIVATIONS)
        return ACTIVATIONS[self.get(name, default)]

    def _typed(self, name: str, default: Any, kind: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise DistillError(f"config.json has no {self.where}{name}: the checkpoint is incomplete")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            expected = getattr(kind, "__name__", "a number")
            raise DistillError(f"config.json: {self.where}{name} is {value!r}, expected {expected}")
        return value


@dataclass(frozen=True)
class Family:
    """What sets a family apart: its configuration in both directions, and its weight table."""

    name: str  # `model_type` in config.json
    architecture: str  # the one in `architectures`
    from_hf: Callable[[HfConfig], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig], list[Row]]
    left_out: Callable[[HfConfig], tuple[str, ...]] = lambda hf: ()
    """What the names of tensors begin with that a checkpoint has and the model does not."""


def base_from_hf(hf: HfConfig, *, head_dim: int | None = None, tied: bool = False) -> dict[str, Any]:
    """Fields of `ModelConfig` that every family has, as it is if there is no more to say.

    head_dim, tied: the family's defaults; without the former the heads share the model's width.
    """
    heads, hidden = hf.int("num_attention_heads"), hf.int("hidden_size")
    head_dim = hf.int("head_dim", head_dim or hidden // max(heads, 1))
    return {
        "vocab_size": hf.int("vocab_size"),
        "hidden": hidden,
        "ffn": hf.int("intermediate_size"),
        "heads": heads,
        "kv_heads": hf.int("num_key_value_heads", heads),
        "head_dim": head_dim,
        "layers": (Layer(),) * hf.int("num_hidden_layers"),
        "max_positions": hf.int("max_position_embeddings", 2048),
        "norm_eps": hf.float("rms_norm_eps", 1e-6),
        "activation": hf.activation("hidden_act", "silu"),
        "tied": hf.bool("tie_word_embeddings", tied),
        "attention_scale": head_dim**-0.5,
    }


def base_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The way back of `base_from_hf`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": activation_to_hf(config),
        "tie_word_embeddings": config.tied,
    }


def activation_to_hf(config: ModelConfig) -> str:
    """The activation in their words."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)


def layer_types(hf: HfConfig, default: list[bool]) -> list[bool]:
    """Which layers have a window: `layer_types` says it, or, in older files, the family's own rule."""
    types = hf.get("layer_types")
    if types is None:
        return default
    if len(types) != len(default) or set(types) - {"sliding_attention", "full_attention"}:
        raise DistillError(
            f"config.json: layer_types is {types!r}, expected sliding_attention or full_attention for "
            f"each of {len(default)} layers"
        )
    return [kind == "sliding_attention" for kind in types]


def layer_types_to_hf(config: ModelConfig) -> dict[str, Any]:
    """`layer_types` and the window of those that have one."""
    types = ["full_attention" if layer.window is None else "sliding_attention" for layer in config.layers]
    return {"layer_types": types, "sliding_window": window_to_hf(config)}


def window_to_hf(config: ModelConfig) -> int | None:
    """The model's one size of window."""
    return next((layer.window for layer in config.layers if layer.window is not None), None)


def rope_from_hf(hf: HfConfig, width: int, theta: float = 10000.0, values: HfConfig | None = None) -> Rope:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (older files).

    values: where the parameters lie, if not there. theta: the family's default.
    """
    if values is None:
        values = hf.part("rope_parameters" if hf.get("rope_parameters") else "rope_scaling")
    kind = values.get("rope_type") or values.get("type") or "default"
    rope = Rope(theta=values.float("rope_theta", hf.float("rope_theta", theta)), width=width)
    if kind == "default":
        return rope
    longest = hf.int("max_position_embeddings", 2048)
    # Phi-3 and some others keep it outside the scaling; then it counts.
    original = hf.int("original_max_position_embeddings", values.int("original_max_position_embeddings", longest))
    if kind == "linear":
        scaling = Scaling(kind="linear", factor=values.float("factor"))
    elif kind == "llama3":
        scaling = Scaling(
            kind="llama3",
            factor=values.float("factor"),
            original=original,
            low=values.float("low_freq_factor"),
            high=values.float("high_freq_factor"),
        )
    elif kind == "yarn":
        scaling = Scaling(
            kind="yarn",
            factor=values.float("factor", longest / original),
            original=original,
            beta_fast=values.float("beta_fast", 32.0),
            beta_slow=values.float("beta_slow", 1.0),
            truncate=values.bool("truncate", True),
            mscale=values.number_or_none("mscale"),
            mscale_all_dim=values.number_or_none("mscale_all_dim"),
            attention_factor=values.number_or_none("attention_factor"),
        )
    elif kind in ("longrope", "su"):
        scaling = Scaling(
            kind="longrope",
            factor=values.float("factor", longest / original),
            original=original,
            attention_factor=values.number_or_none("attention_factor"),
            short=values.numbers("short_factor"),
            long=values.numbers("long_factor"),
        )
    else:
        known = "default, linear, llama3, yarn and longrope"
        raise DistillError(f"config.json: rope_type {kind!r} is not supported, {known} are")
    return rope.model_copy(update={"scaling": scaling})


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 writes them."""
    scaling = rope.scaling
    values: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": scaling.kind if scaling else "default"}
    if scaling is None:
        return values
    values["factor"] = scaling.factor
    if scaling.kind != "linear":
        values["original_max_position_embeddings"] = scaling.original
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        values |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    if scaling.kind == "longrope":
        values |= {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
    optional = {name: getattr(scaling, name) for name in ("mscale", "mscale_all_dim", "attention_factor")}
    return values | {name: value for name, value in optional.items() if value is not None}


def base_rows(ffn_norm: str = "post_attention_layernorm") -> list[Row]:
    """The table of a family that names its tensors as Llama does.

    It may have rows for weights that a model does not have. ffn_norm: their norm in front of the
    feed-forward.
    """
    return [
        Row("embed", "model.embed_tokens.weight", "V D"),
        Row("norm.weight", "model.norm.weight", "D"),
        Row("head", "lm_head.weight", "V D"),
        Row(OURS + "attention_norm.weight", THEIRS + "input_layernorm.weight", "D"),
        Row(OURS + "ffn_norm.weight", THEIRS + ffn_norm + ".weight", "D"),
        Row(OURS + "attention.q", ATTENTION + "q_proj.weight", "(N H) D"),
        Row(OURS + "attention.k", ATTENTION + "k_proj.weight", "(K H) D"),
        Row(OURS + "attention.v", ATTENTION + "v_proj.weight", "(K H) D"),
        Row(OURS + "attention.o", ATTENTION + "o_proj.weight", "D (N H)"),
        Row(OURS + "attention.q_bias", ATTENTION + "q_proj.bias", "(N H)"),
        Row(OURS + "attention.k_bias", ATTENTION + "k_proj.bias", "(K H)"),
        Row(OURS + "attention.v_bias", ATTENTION + "v_proj.bias", "(K H)"),
        Row(OURS + "attention.o_bias", ATTENTION + "o_proj.bias", "D"),
        Row(OURS + "attention.q_norm.weight", ATTENTION + "q_norm.weight", "H"),
        Row(OURS + "attention.k_norm.weight", ATTENTION + "k_norm.weight", "H"),
        *ffn_rows("ffn.", MLP, "F"),
        Row(OURS + "ffn.gate_bias", MLP + "gate_proj.bias", "F"),
        Row(OURS + "ffn.up_bias", MLP + "up_proj.bias", "F"),
        Row(OURS + "ffn.down_bias", MLP + "down_proj.bias", "D"),
    ]


def ffn_rows(ours: str, theirs: str, hidden: str, names: str = "gate_proj up_proj down_proj") -> list[Row]:
    """The three matrices of a gated network; in `theirs` may stand `{expert}`."""
    gate, up, down = names.split()
    return [
        Row(OURS + ours + "gate", f"{theirs}{gate}.weight", f"{hidden} D"),
        Row(OURS + ours + "up", f"{theirs}{up}.weight", f"{hidden} D"),
        Row(OURS + ours + "down", f"{theirs}{down}.weight", f"D {hidden}"),
    ]


def expert_rows(mlp: str = MLP, names: str = "gate_proj up_proj down_proj") -> list[Row]:
    """A router and experts that are a tensor each. mlp: what their names begin with."""
    router = Row(OURS + "ffn.router", mlp + "gate.weight", "E D")
    return [router, *ffn_rows("ffn.experts.", mlp + "experts.{expert}.", "X", names)]
