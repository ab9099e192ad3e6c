"""What a run says of itself: `metrics.jsonl`, a row for each logged step, the bar on stderr, TensorBoard's events."""

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from distill.config.stages import Stage
from distill.data.loader import Loader
from distill.errors import DistillError
from distill.parallel.processes import is_first
from distill.training.optimizer import learning_rate
from distill.training.speed import peak


class Log:
    """Counts from the step that a run, or its latest part, begins with. Only the first process writes.

    operations: floating-point operations that a step needs, see `speed.operations`.
    """

    def __init__(self, path: Path, name: str, stage: Stage, operations: float, loader: Loader, first: int, steps: int):
        self.loader, self.first, self.steps = loader, first, steps
        self.rate = learning_rate(stage, steps)
        self.peak = peak(stage)
        self.operations = operations
        self.started = time.monotonic()
        board = stage.tensorboard and is_first()
        self.board = _board(path.parent.parent / "tensorboard", first) if board else None
        self.file = path.open("a", encoding="utf-8") if is_first() else None
        self.bar = tqdm(
            total=steps, initial=first, desc=name, unit="step", mininterval=1.0, file=sys.stderr, disable=not is_first()
        )

    @property
    def seconds(self) -> float:
        """Since the run, or its latest part, began."""
        return time.monotonic() - self.started

    def write(self, step: int, metrics: dict[str, Any], judged: dict[str, float]) -> None:
        """Add the row of a step. `mfu` is there where the device's peak is known."""
        tokens, seconds, done = self.loader.learned_before(step), self.seconds, step - self.first
        row = {
            "step": step,
            **{name: float(value) for name, value in metrics.items()},
            "learning_rate": float(self.rate(step - 1)),
            "tokens": tokens,
            "tokens_per_second": (tokens - self.loader.learned_before(self.first)) / seconds,
            "operations": self.operations * step,
            "seconds": seconds,
            "seconds_left": seconds / done * (self.steps - step),
            **({"mfu": self.operations * done / seconds / self.peak} if self.peak else {}),
            **judged,
        }
        if self.file is not None:
            self.file.write(json.dumps({key: value if math.isfinite(value) else None for key, value in row.items()}))
            self.file.write("\n")
            self.file.flush()
        if self.board is not None:
            for name in row.keys() - {"step"}:
                self.board.add_scalar(name, row[name], step)
            self.board.flush()
        shown = {"loss": f"{row['loss']:.4f}", "tokens_s": round(row["tokens_per_second"])}
        if "held_out_loss" in judged:
            shown["held_out"] = f"{judged['held_out_loss']:.4f}"
        self.bar.set_postfix(shown, refresh=False)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        for opened in (self.bar, self.file, self.board):
            if opened is not None:
                opened.close()


def _board(folder: Path, first: int) -> Any:
    """What TensorBoard reads; steps that are done again replace those of the run before."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise DistillError("tensorboard: true needs tensorboardX: pip install tensorboardX, or leave it out") from None
    return SummaryWriter(str(folder), purge_step=first + 1)
