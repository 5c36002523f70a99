"""Curves over training steps: series in, [H W 3] uint8 out, drawn with matplotlib's Agg (no display, no pyplot)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT, DPI = 4.4, 2.7, 140  # of one panel, in inches; dots per inch
# Okabe and Ito's colours, which the colour-blind can tell apart, in the order of contrast with the paper.
LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "faint": "#6e7781", "line": "#d8dee4"}
LIGHT_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DARK = {"paper": "#161b22", "ink": "#e6edf3", "faint": "#8b949e", "line": "#30363d"}
DARK_LINES = ("#56b4e9", "#e69f00", "#00b98a", "#cc79a7", "#d55e00", "#0072b2")


class Series(NamedTuple):
    label: str
    steps: Sequence[float]
    values: Sequence[float]
    chance: float | None = None  # drawn as a dotted line


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """[N] -> [N]: the mean over the last `window` values that are numbers, or over as many as there are."""
    good = np.isfinite(values)
    total, count = (np.concatenate([np.zeros(window), x.cumsum()]) for x in (np.where(good, values, 0), good))
    return (total[window:] - total[:-window]) / np.maximum(count[window:] - count[:-window], 1)


def curves(panels: Mapping[str, Sequence[Series]], columns: int = 2, dark: bool = False, x: str = "step") -> np.ndarray:
    """One panel for each title. A series of more than 100 points is drawn faint, with its running mean on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    theme, colours = (DARK, DARK_LINES) if dark else (LIGHT, LIGHT_LINES)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure((columns * WIDTH, rows * HEIGHT), DPI, facecolor=theme["paper"], layout="constrained")
    for n, (title, series) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, n + 1, facecolor=theme["paper"])
        axes.set_title(title, color=theme["ink"], fontsize=10, loc="left", fontweight="bold", parse_math=False)
        axes.grid(color=theme["line"], linewidth=0.6)
        axes.tick_params(colors=theme["faint"], labelsize=8, length=0)
        axes.spines[:].set_visible(False)
        for line, colour in zip(series, colours * len(series), strict=False):
            draw(axes, line, colour)
        if len(series) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=theme["ink"])
        if n >= len(panels) - columns:
            axes.set_xlabel(x, color=theme["faint"], fontsize=8)
        if any(line.chance is not None for line in series):
            axes.set_title("dotted: chance", color=theme["faint"], fontsize=7.5, loc="right")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(axes, line: Series, colour: str) -> None:
    steps, values = np.asarray(line.steps, float), np.asarray(line.values, float)
    many = len(values) > 100
    # A label that starts with "_" would be left out of the legend.
    style = {"color": colour, "label": line.label.lstrip("_"), "linewidth": 1.8}
    if many:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values, max(len(values) // 50, 2)), **style)
        good = values[np.isfinite(values)]
        if good.size:  # the first steps are far off, and would flatten the rest
            axes.set_ylim(*limits(good))
    else:
        axes.plot(steps, values, marker="o", markersize=3, **style)
    if line.chance is not None:
        axes.axhline(line.chance, color=colour, linestyle=":", linewidth=1.2)


def limits(values: np.ndarray) -> tuple[float, float]:
    """The range that holds all values but the highest and lowest 0.5 %, with a margin."""
    low, high = np.percentile(values, [0.5, 99.5])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
