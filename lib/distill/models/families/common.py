"""What the families share: reading a Hugging Face configuration, and rotary embeddings both ways."""

from typing import Any

from distill.errors import DistillError
from distill.models.config import Rope, Scaling

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


class HfConfig:
    """A `config.json`, read field by field; a field that is missing or of another type is a DistillError."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def get(self, name: str, default: Any = None) -> Any:
        """The field as it is, or the default where it is absent or null."""
        value = self.values.get(name)
        return default if value is None else value

    def int(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        return int(self._typed(name, default, int))

    def float(self, name: str, default: float | None = None) -> float:
        """A number."""
        return float(self._typed(name, default, (int, float)))

    def bool(self, name: str, default: bool) -> bool:
        """True or false."""
        return bool(self._typed(name, default, bool))

    def activation(self, name: str) -> str:
        """The activation in our words."""
        value = self.get(name, "silu")
        if value not in ACTIVATIONS:
            raise DistillError(
                f"config.json: {name} {value!r} is not supported, {', '.join(ACTIVATIONS)} are"
            )
        return ACTIVATIONS[value]

    def _typed(self, name: str, default: Any, kind: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise DistillError(f"config.json has no {name}: the checkpoint is incomplete")
        if not isinstance(value, kind):
            raise DistillError(
                f"config.json: {name} is {value!r}, expected {getattr(kind, '__name__', 'a number')}"
            )
        return value


def rope_from_hf(
    hf: HfConfig, width: int, theta: float = 10000.0, values: dict[str, Any] | None = None
) -> Rope:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (older files)."""
    if values is None:
        values = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    theta = float(values.get("rope_theta") or hf.get("rope_theta") or theta)
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind == "default":
        return Rope(theta=theta, width=width)
    if kind == "linear":
        return Rope(theta=theta, width=width, scaling=Scaling(kind=kind, factor=values["factor"]))
    if kind == "llama3":
        scaling = Scaling(
            kind=kind,
            factor=values["factor"],
            low=values["low_freq_factor"],
            high=values["high_freq_factor"],
            original=values["original_max_position_embeddings"],
        )
        return Rope(theta=theta, width=width, scaling=scaling)
    raise DistillError(f"config.json: rope_type {kind!r} is not supported, default, linear and llama3 are")


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 writes them."""
    values: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    scaling = rope.scaling
    if scaling is not None:
        values |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            values |= {
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.original,
            }
    return values
