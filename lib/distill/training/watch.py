"""A loss that is no number, or far above the ones before, ends a run with its step and batch named."""

import math
from collections import deque
from statistics import median

from distill.data.loader import Loader
from distill.errors import DistillError

REMEMBERED = 100  # losses whose median is what is usual
SHOWN = 8


class Watch:
    """Sees every step's metrics, one step late, so that the device need not wait to be asked."""

    def __init__(self, name: str, loader: Loader, spike: float | None):
        self.name, self.loader, self.spike = name, loader, spike
        self.usual: deque[float] = deque(maxlen=REMEMBERED)
        self.unseen: tuple[int, dict] | None = None

    def add(self, step: int, metrics: dict) -> None:
        """Look at the step before; `metrics` are looked at next time."""
        self.look()
        self.unseen = step, metrics

    def look(self) -> None:
        """Look at what was added last. Nothing is saved before that."""
        if self.unseen is None:
            return
        (step, metrics), self.unseen = self.unseen, None
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not math.isfinite(float(metrics.get("divergence", 0.0))) and math.isfinite(float(metrics["nll"])):
            raise DistillError(
                f"stage {self.name}: the teacher gave NaN at step {step}, where the student's NLL is a number: its "
                f"weights are damaged or teacher_dtype is too narrow (batch: {self._batch(step)}); the last good "
                "checkpoint is kept"
            )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DistillError(
                f"stage {self.name}: loss {loss} and gradient norm {norm} at step {step}: lower learning_rate or "
                f"clip_norm, or look at its batch ({self._batch(step)}); the last good checkpoint is kept"
            )
        if self.spike and len(self.usual) == REMEMBERED and loss > self.spike * median(self.usual):
            raise DistillError(
                f"stage {self.name}: loss {loss:.4g} at step {step} is more than {self.spike:g} times the median "
                f"of the {REMEMBERED} steps before, {median(self.usual):.4g}: lower learning_rate, raise spike, or "
                f"look at its batch ({self._batch(step)}); the last good checkpoint is kept"
            )
        self.usual.append(loss)

    def _batch(self, step: int) -> str:
        order = self.loader.order(step - 1)
        return f"examples {', '.join(map(str, order[:SHOWN]))}{' and others' if len(order) > SHOWN else ''}"
