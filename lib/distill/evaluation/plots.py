"""The report's plots, as SVG that takes its font and its colours from the page around it.

Colours are drawn as sentinels and become CSS variables, so one drawing serves light, dark and paper. Text
stays text (`svg.fonttype: none`), ids carry the plot's name, nothing holds a date: equal input, equal bytes.
"""

import io
import re
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

COLOURS = {  # CSS variable -> sentinel
    name: f"#01{number:02x}fe"
    for number, name in enumerate(("ink", "muted", "rule", "paper", "teacher", "before", "after", "other"))
}
# A role is told by shape and place, not by colour alone.
MARKS = {"teacher": "D", "before": "o", "after": "o", "other": "s"}
MOST_POINTS = 300
STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the layout is the same on every machine
    "font.size": 11,
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
    "hatch.color": COLOURS["paper"],
    "hatch.linewidth": 1.6,
}


@dataclass(frozen=True)
class Score:
    """One row of a score plot; `low` and `high` bound the value's uncertainty."""

    label: str
    role: str
    value: float
    low: float | None = None
    high: float | None = None


def scores(name: str, rows: list[Score], percent: bool) -> str:
    """One row a model; a stage's row shows the way from the student before and the rest to the teacher."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 0.3 + 0.56 * len(rows)), layout="constrained")
        axes = figure.subplots()
        top = 1.0 if percent else 1.08 * max([row.high or row.value for row in rows] + [1e-9])
        axes.set(xlim=(-0.015 * top, 1.015 * top), ylim=(len(rows) - 0.6, -0.7), yticks=[])
        ends = {row.role: row.value for row in rows if row.role != "after"}
        for y, row in enumerate(rows):
            axes.hlines(y, 0, top, color=COLOURS["rule"], linewidth=1)
            if row.role == "after" and "before" in ends:
                axes.hlines(y, ends["before"], row.value, color=COLOURS["after"], linewidth=3)
                axes.plot(ends["before"], y, "o", color=COLOURS["before"], markersize=5.5)
            if row.role == "after" and "teacher" in ends:
                axes.plot(ends["teacher"], y, "D", color=COLOURS["teacher"], fillstyle="none", markersize=6)
            if row.low is not None and row.high is not None:
                axes.hlines(y, row.low, row.high, color=COLOURS[row.role], linewidth=7, alpha=0.3)
            axes.plot(row.value, y, MARKS[row.role], color=COLOURS[row.role], markersize=8, clip_on=False)
            axes.text(0, y - 0.3, row.label, fontsize=11)
            text = f"{100 * row.value:.1f}%" if percent else f"{row.value:.3f}"
            axes.text(top, y - 0.3, text, ha="right", fontsize=11, weight="bold")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if percent:
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        axes.spines["bottom"].set_visible(False)
        return _svg(figure, name, f"{name}: {'; '.join(f'{row.label} {row.value:.3f}' for row in rows)}")


def loss(name: str, steps: list[int], losses: list[float], rates: list[float]) -> tuple[str, str]:
    """Loss (above) and learning rate (below) over steps; returns the SVG and how the line was smoothed."""
    x, raw, rate, grouped = *_thinned(steps, losses, rates), -(-len(steps) // MOST_POINTS)
    window = max(1, len(x) // 20) | 1
    logarithmic = raw.min() > 0 and raw.max() > 10 * raw.min()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 3.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot(x, raw, color=COLOURS["after"], linewidth=1, alpha=0.4 if window > 1 else 1)
        if window > 1:
            upper.plot(x, _smooth(raw, window), color=COLOURS["after"], linewidth=2)
        if logarithmic:
            upper.set_yscale("log")
            upper.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if raw.max() < 1000 * raw.min() else (1.0,)))
            upper.yaxis.set_minor_locator(NullLocator())
            upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            upper.set_ylim(bottom=min(0, raw.min()))
            upper.yaxis.set_major_locator(MaxNLocator(4))
        lower.fill_between(x, rate, color=COLOURS["before"], alpha=0.25, linewidth=0)
        lower.plot(x, rate, color=COLOURS["before"], linewidth=1.4)
        lower.set(xlabel="step", ylim=(0, 1.15 * max(rate.max(), 1e-12)), yticks=[rate.max()])
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        lower.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _headed(upper, f"loss (nats per token{', log scale' if logarithmic else ''})")
        _headed(lower, "learning rate")
        upper.tick_params(axis="x", length=0)
        said = [f"each point is the mean of {grouped} logged steps"] if grouped > 1 else []
        said += [f"bold line: mean over {window} points"] if window > 1 else []
        return _svg(figure, name, f"{name}: loss from {losses[0]:.4g} to {losses[-1]:.4g}"), "; ".join(said)


def lengths(name: str, tokens: dict[str, np.ndarray]) -> str:
    """Histogram of completion lengths, stacked by finish reason; `length` is hatched."""
    everything = np.concatenate(list(tokens.values()))
    low, high = int(everything.min()), int(everything.max())
    width = max(1, -(-(high - low + 1) // 40))
    edges = np.arange(low, high + width + 1, width) - 0.5
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 2.7), layout="constrained")
        axes = figure.subplots()
        base = np.zeros(len(edges) - 1)
        for reason, values in tokens.items():
            counts, _ = np.histogram(values, edges)
            axes.bar(edges[:-1] + width / 2, counts, 0.86 * width, bottom=base, linewidth=0,
                     color=COLOURS["teacher" if reason == "stop" else "after"],
                     hatch=None if reason == "stop" else "////")  # fmt: skip
            base += counts
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set(xlabel="tokens in a completion", xlim=(edges[0] - 0.5 * width, edges[-1] + 0.5 * width))
        _headed(axes, "samples")
        return _svg(figure, name, f"{name}: {len(everything)} completions of {low} to {high} tokens")


def _headed(axes: Axes, text: str) -> None:
    """A label above the y axis, read without turning one's head."""
    axes.grid(True, axis="y")
    axes.annotate(text, (0.004, 1), xycoords=("figure fraction", "axes fraction"), xytext=(0, 9),
                  textcoords="offset points", color=COLOURS["muted"])  # fmt: skip


def _thinned(*columns: list[float]) -> list[np.ndarray]:
    """Columns of at most MOST_POINTS points, each the mean of equally many neighbours."""
    group = -(-len(columns[0]) // MOST_POINTS)
    arrays = [np.asarray(column, dtype=float) for column in columns]
    return [np.array([part.mean() for part in np.split(a, range(group, len(a), group))]) for a in arrays]


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` (odd) points, over fewer at the ends."""
    half = window // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an inline `<svg>`: CSS variables, ids of its own, no address, no date.

    The page's style sets the font of `svg.plot text`.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # its `*` rule would reach the whole page
    svg = re.sub(r'\s*xmlns(:xlink)?="[^"]*"', "", svg)  # HTML needs no namespaces
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, sentinel in COLOURS.items():
        svg = svg.replace(sentinel, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    opening = f'<svg class="plot" role="img" aria-label="{_escaped(title)}" {box}>'
    return opening + svg[svg.index(">") + 1 :]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
