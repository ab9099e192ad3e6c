"""The plots of an experiment's arms, as SVG files of their own: black on white, equal input gives equal bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "arms",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}
NAMES = {"nll": "NLL", "kl": "KL from the teacher", "exact_match": "exact match"}


def arm_gains(arms: Mapping[str, Any]) -> str:
    """Each arm's gain on each score with its interval: 0 is the baseline, 1 the teacher."""
    drawn = [score for score in NAMES if any(arm["gain"].get(score) for arm in arms.values())]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 2.9 * max(1, len(drawn)), 0.9 + 0.34 * len(arms)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, max(1, len(drawn)), sharey=True))
        for axes, score in zip(panels, drawn, strict=False):
            axes.axvline(0, color="#999999", linewidth=1)
            axes.axvline(1, color="#999999", linewidth=1, linestyle="--")
            for y, arm in enumerate(arms.values()):
                if found := arm["gain"].get(score):
                    axes.hlines(y, found["low"], found["high"], color="#1f5fa8", linewidth=5, alpha=0.35)
                    axes.plot(found["mean"], y, "o", color="#1f5fa8", markersize=6)
            axes.set_title(NAMES[score], fontsize=11, loc="left")
            axes.grid(True, axis="x")
        panels[0].set(yticks=range(len(arms)), yticklabels=list(arms), ylim=(len(arms) - 0.5, -0.5))
        figure.supxlabel("gain: 0 is the baseline, 1 the teacher", fontsize=10)
        return _svg(figure)


def arm_curves(curves: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]], teacher: float, budget: float) -> str:
    """Held-out NLL over operations spent, a line an arm (the mean over its seeds); `budget` is where all are read."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["tab20"].colors
        for i, (arm, seeds) in enumerate(curves.items()):
            length = min(map(len, seeds.values()))
            points = np.asarray([curve[:length] for curve in seeds.values()]).mean(axis=0)
            axes.plot(points[:, 0], points[:, 1], label=arm, color=colours[i % 20], linewidth=1.8)
        axes.axvline(budget, color="#999999", linewidth=1, linestyle=":")
        axes.axhline(teacher, color="#999999", linewidth=1, linestyle="--")
        axes.set(xlabel="floating-point operations, the teacher's included", ylabel="held-out NLL (nats a token)")
        axes.grid(True)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
