"""How much of the device's peak a run uses (MFU, PaLM arXiv 2204.02311 appendix B), where the peak is known."""

import math

import jax

from distill.config.stages import Stage
from distill.data.loader import Loader
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.training.teacher import Teacher

PEAK = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12,
    "TPU v5p": 459e12, "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
}  # fmt: skip
"""Floating-point operations a second of one device in dense bfloat16, as its maker tells (SXM for NVIDIA)."""


def peak(stage: Stage) -> float | None:
    """Of all devices together; None where it is not known, or the stage computes in another type."""
    kind = jax.devices()[0].device_kind
    found = max((name for name in PEAK if name in kind), key=len, default=None)
    return PEAK[found] * jax.device_count() if found and stage.dtype == "bfloat16" else None


def operations(stage: Stage, loader: Loader, config: ModelConfig, teacher: Teacher | None) -> float:
    """What a step needs on the average: the student, the teacher who is asked, samples that the student draws."""
    student = token_operations(config, loader.length, backward=2 if stage.lora is None else 1)
    theirs = loader.teacher_length
    asked = 0.0 if teacher is None else theirs * token_operations(teacher.config, theirs, backward=0)
    drawn = stage.on_policy.share if stage.objective == "on_policy" else 0.0
    sampled = drawn * token_operations(config, loader.length, backward=0)
    return stage.batch_size * (loader.length * (student + sampled) + asked)


def token_operations(config: ModelConfig, length: int, *, backward: int = 2) -> float:
    """What one position of a row needs: two a weight forward, and as many for each gradient on the way back.

    backward: 2, of what came in and of the weights; 1 where weights are frozen; 0 where nothing is learned.

    Of experts those that a token asks; attention over half of `length`, as it is causal. Rematerialisation is
    not counted, nor is the embedding, which is a look-up.
    """
    weights = attention = 0.0
    for path, axes in decoder.weight_axes(config).items():
        size = float(math.prod(config.sizes[axis] for axis in axes.split()))
        if ".experts." in path:
            size *= config.experts.per_token / config.experts.count
        weights += size if path != "embed" or config.tied else 0.0
    for layer in config.layers:
        seen = length / 2 if layer.window is None else min(layer.window, length / 2)
        values = config.latent.value if config.latent else config.head_dim
        attention += 2 * seen * config.heads * (config.head_dim + values)
    return 2 * (1 + backward) * weights + (3 if backward else 1) * attention
