"""The pictures of a run and of a comparison, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 12  # languages that get a colour and a label of their own; of more, only the groups do
INK, GRID = "#333333", "#dddddd"


def draw_loss(records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any], path: Path) -> None:
    """Training NLL (a running mean) and validation NLL per language over the updates, on one scale."""
    training: dict[str, list[tuple[int, float]]] = {}
    validation: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.get("losses", {}).items():
            if value is not None:  # what diverged is not finite, and null
                training.setdefault(name, []).append((record["step"], value))
        for name, value in record.get("valid", {}).get("nll", {}).items():
            if value is not None:
                validation.setdefault(name, []).append((record["step"], value))
    panels = {"training (running mean)": {n: _smooth(p) for n, p in training.items()}}
    if validation:
        panels["validation"] = validation
    figure, axes = new_figure(len(panels), sharey=True)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        _curves(axis, curves, scores)
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel("update")
    axes[0].set_ylabel("NLL, nats per target token")
    _label_ends(axes[-1])
    _legend(axes[0], scores)
    save_figure(figure, path)


def draw_alpha(records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any], path: Path) -> None:
    """The tasks' shares of the sum of α over the updates, uniform weighting dotted; logarithmic, unless one is 0."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        alpha = record.get("alpha", {})
        total = sum(alpha.values())
        for name, value in alpha.items():
            curves.setdefault(name, []).append((record["step"], value / total if total else 0.0))
    figure, (axis,) = new_figure(1)
    _curves(axis, curves, scores)
    uniform = 1 / max(1, len(curves))
    axis.axhline(uniform, color=INK, linewidth=0.9, linestyle=":", zorder=1)
    if curves and all(value > 0 for points in curves.values() for _, value in points):
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

        axis.set_yscale("log")
        # Weights that hardly move must look so: never less than a tenth up and down is shown.
        low, high = axis.get_ylim()
        low, high = min(low, uniform / 1.1), max(high, uniform * 1.1)
        axis.set_ylim(low, high)
        if high < 12 * low:  # within a decade ticks at powers of ten alone would say nothing
            axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("update")
    axis.set_ylabel("α, share of the total")
    axis.set_title(f"task weights, method {scores['method']}", loc="left", color=INK)
    _label_ends(axis)
    _legend(axis, scores, dotted="uniform")
    save_figure(figure, path)


def _smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Mean over a window of 1/20 of the curve around each point; a language has few tokens in each update."""
    half = len(points) // 40
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    at = np.arange(len(points))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(points))
    means = (sums[last] - sums[first]) / (last - first)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def _curves(axis: Axes, curves: Mapping[str, list[tuple[int, float]]], scores: Mapping[str, Any]) -> None:
    """One line per language, LoRes warm and solid, HiRes cool and dashed; of many, the groups' means stand out."""
    from matplotlib import colormaps

    low, middle = ({*scores["groups"].get(group, {}).get("languages", ())} for group in ("lores", "midres"))
    names = sorted(curves, key=lambda name: (scores["languages"][name]["pairs"], name))
    few = len(names) <= MOST_LABELS
    for title, palette, style, members in (
        ("LoRes", colormaps["YlOrRd"], "-", [name for name in names if name in low]),
        ("MidRes", colormaps["Greens"], "-.", [name for name in names if name in middle]),
        ("HiRes", colormaps["YlGnBu"], "--", [name for name in names if name not in low | middle]),
    ):
        for i, name in enumerate(members):
            colour = palette(0.95 - 0.45 * i / max(1, len(members) - 1))
            steps, values = zip(*curves[name], strict=True)
            width, opacity, label = (1.6, 1.0, name) if few else (0.7, 0.4, "_")
            axis.plot(steps, values, style, color=colour, linewidth=width, alpha=opacity, label=label)
        if members and not few:
            steps, values = zip(*_mean([curves[name] for name in members]), strict=True)
            axis.plot(steps, values, style, color=palette(0.9), linewidth=2.4, label=title)
    axis.set_xlim(0, max((points[-1][0] for points in curves.values()), default=1))


def _mean(curves: Sequence[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean of several curves, at the steps where any of them has a value."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    return [(step, sum(here) / len(here)) for step, here in sorted(values.items())]


def _label_ends(axis: Axes) -> None:
    """Names every labelled line at its right end, moved up or down where names would touch. Set the scales before."""
    gap = 0.055  # of the axes' height: one line of text
    axis.autoscale_view()  # matplotlib leaves it for later, but the heights below depend on it
    ends = []
    for line in axis.get_lines():
        if not str(line.get_label()).startswith("_"):
            point = axis.transData.transform(np.asarray(line.get_xydata())[-1])
            ends.append((float(axis.transAxes.inverted().transform(point)[1]), line))
    ends.sort(key=lambda end: end[0])
    heights = _spread([end for end, _ in ends], gap)
    for height, (end, line) in zip(heights, ends, strict=True):
        axis.annotate(
            str(line.get_label()),
            xy=(1.005, end),
            xytext=(1.04, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=line.get_color(),
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved as little as possible (least squares) to be ``gap`` apart and in 0.03 .. 1."""
    # With the gaps taken out this is isotonic regression: blocks that are out of order are merged to their mean.
    blocks: list[tuple[float, int]] = []
    for i, height in enumerate(heights):
        mean, count = height - i * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean, count = (mean * count + before * size) / (count + size), count + size
        blocks.append((mean, count))
    highest = max(0.03, 1 - (len(heights) - 1) * gap)
    flat = [min(max(mean, 0.03), highest) for mean, count in blocks for _ in range(count)]
    return [mean + i * gap for i, mean in enumerate(flat)]


def _legend(axis: Axes, scores: Mapping[str, Any], dotted: str | None = None) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="#bd0026", linestyle="-", label="LoRes"),
        Line2D([], [], color="#225ea8", linestyle="--", label="HiRes"),
    ]
    if "midres" in scores["groups"]:
        handles.insert(1, Line2D([], [], color="#238b45", linestyle="-.", label="MidRes"))
    if dotted:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label=dotted))
    axis.legend(handles=handles, frameon=False, fontsize=9, loc="best", labelcolor=INK)


def new_figure(panels: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, in the project's style, as wide as a README; no window is ever opened.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib; install it with: pip install 'cats-optim[nmt]'") from None
    figure = Figure(figsize=(8.4, 3.8 if panels > 1 else 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, sharey=sharey, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(colors=INK, labelsize=9)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
        axis.title.set_size(10.5)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())
