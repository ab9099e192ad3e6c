"""Accelerators by name: what their makers tell of one device."""

from typing import NamedTuple

from distill.config.results import Plan
from distill.config.settings import did_you_mean
from distill.errors import DistillError
from distill.training.speed import PEAK

MEMORY = {
    "H100": 80e9, "H200": 141e9, "A100": 80e9, "TPU v4": 32 * 2**30, "TPU v5e": 16 * 2**30,
    "TPU v5p": 95 * 2**30, "TPU v6e": 32 * 2**30,
}  # fmt: skip
"""Bytes, of the largest variant."""
BANDWIDTH = {
    "H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12, "TPU v4": 1.2e12, "TPU v5e": 0.82e12,
    "TPU v5p": 2.77e12, "TPU v6e": 1.64e12,
}  # fmt: skip
"""Bytes a second between a device and its memory."""


class Machine(NamedTuple):
    """The devices of a plan. peak: floating-point operations a second of one; None where neither is told nor known."""

    device: str | None
    devices: int
    peak: float | None
    memory: float | None
    bandwidth: float | None


def machine(plan: Plan) -> Machine:
    """What the recipe's plan says, filled up with what is known of the kind."""
    if plan.device is not None and plan.device not in MEMORY:
        raise DistillError(
            f"plan.device: {plan.device} is not known{did_you_mean(plan.device, MEMORY)}: leave it out, and give "
            "peak_tflops, memory_gib and bandwidth_gbs"
        )
    return Machine(
        plan.device,
        plan.devices,
        plan.peak_tflops * 1e12 if plan.peak_tflops else PEAK.get(plan.device),
        plan.memory_gib * 2**30 if plan.memory_gib else MEMORY.get(plan.device),
        plan.bandwidth_gbs * 1e9 if plan.bandwidth_gbs else BANDWIDTH.get(plan.device),
    )
