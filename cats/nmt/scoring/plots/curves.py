"""The curves of a run over its updates: losses and task weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cats.nmt.scoring.plots.style import INK, label_ends, new_figure, save_figure
from cats.nmt.scoring.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LABELS = 12  # with more languages, only the means of the groups are labelled

Curve = list[tuple[int, float]]  # step and value of each point


def draw_loss(records: Sequence[Mapping[str, Any]], scores: Scores, path: Path) -> None:
    """Draws the NLL of each language over the updates: on training text (a running mean) and on validation text.

    Args:
        records: the lines of metrics.jsonl.
        scores: groups and training pairs of the languages.
        path: the PNG file to write; an SVG file is written beside it.
    """
    training: dict[str, Curve] = {}
    validation: dict[str, Curve] = {}
    for record in records:
        for name, value in record.get("losses", {}).items():
            if value is not None:  # a loss that is not finite is null in the file
                training.setdefault(name, []).append((record["step"], value))
        for name, value in record.get("valid", {}).get("nll", {}).items():
            if value is not None:
                validation.setdefault(name, []).append((record["step"], value))
    panels = {"training (running mean)": {name: _smooth(curve) for name, curve in training.items()}}
    if validation:
        panels["validation"] = validation
    figure, axes = new_figure(len(panels), sharey=True)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        _draw_curves(axis, curves, scores)
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel("update")
    axes[0].set_ylabel("NLL, nats per target token")
    label_ends(axes[-1])
    _draw_legend(axes[0], scores)
    save_figure(figure, path)


def draw_alpha(records: Sequence[Mapping[str, Any]], scores: Scores, path: Path) -> None:
    """Draws each task's share of the sum of α over the updates, and the share of uniform weights as a dotted line.

    The curves are running means: with a prior of token shares, α follows what is in each batch. The scale is
    logarithmic unless a weight is 0.

    Args:
        records: the lines of metrics.jsonl.
        scores: groups and training pairs of the languages, and the method.
        path: the PNG file to write; an SVG file is written beside it.
    """
    curves: dict[str, Curve] = {}
    for record in records:
        alpha = {name: value for name, value in record.get("alpha", {}).items() if value is not None}
        total = sum(alpha.values())
        for name, value in alpha.items():
            curves.setdefault(name, []).append((record["step"], value / total if total else 0.0))
    curves = {name: _smooth(points) for name, points in curves.items()}
    figure, (axis,) = new_figure(1)
    _draw_curves(axis, curves, scores)
    uniform = 1 / max(1, len(curves))
    axis.axhline(uniform, color=INK, linewidth=0.9, linestyle=":", zorder=1)
    if curves and all(value > 0 for points in curves.values() for _, value in points):
        _set_log_scale(axis, uniform)
    axis.set_xlabel("update")
    axis.set_ylabel("α, share of the total (running mean)")
    axis.set_title(f"task weights, method {scores.run.method}", loc="left", color=INK)
    label_ends(axis)
    _draw_legend(axis, scores, dotted="uniform")
    save_figure(figure, path)


def _set_log_scale(axis: Axes, uniform: float) -> None:
    """Makes the scale of task weights logarithmic, with readable ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis.set_yscale("log")
    # Small changes must look small in the picture, so the axis shows at least 10 % above and below the uniform weight.
    low, high = axis.get_ylim()
    low, high = min(low, uniform / 1.1), max(high, uniform * 1.1)
    axis.set_ylim(low, high)
    if high < 12 * low:  # matplotlib puts ticks at powers of ten only, which are too few within one decade
        axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())


def _smooth(points: Curve) -> Curve:
    """Running mean. The window is 1/20 of the curve, because what is in the few tokens of one update is noisy."""
    half = len(points) // 40
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    at = np.arange(len(points))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(points))
    means = (sums[last] - sums[first]) / (last - first)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def _draw_curves(axis: Axes, curves: Mapping[str, Curve], scores: Scores) -> None:
    """Draws one line for each language. With many languages the lines are thin, and the groups' means are bold."""
    from matplotlib import colormaps

    low, middle = ({*scores.members.get(group, ())} for group in ("lores", "midres"))
    # A task that is trained on but not scored belongs to no group.
    names = sorted((name for name in curves if name in scores.pairs), key=lambda name: (scores.pairs[name], name))
    few = len(names) <= _MOST_LABELS
    for title, palette, style, members in (
        ("LoRes", colormaps["Oranges"], "-", [name for name in names if name in low]),
        ("MidRes", colormaps["Greys"], "-.", [name for name in names if name in middle]),
        ("HiRes", colormaps["Blues"], "--", [name for name in names if name not in low | middle]),
    ):
        for i, name in enumerate(members):
            colour = palette(0.95 - 0.45 * i / max(1, len(members) - 1))
            steps, values = zip(*curves[name], strict=True)
            # A label that starts with "_" is not shown.
            width, opacity, label = (1.6, 1.0, name) if few else (0.7, 0.4, "_")
            axis.plot(steps, values, style, color=colour, linewidth=width, alpha=opacity, label=label)
        if members and not few:
            steps, values = zip(*_mean([curves[name] for name in members]), strict=True)
            axis.plot(steps, values, style, color=palette(0.9), linewidth=2.4, label=title)
    axis.set_xlim(0, max((points[-1][0] for points in curves.values()), default=1))


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves, at each step where at least one of them has a value."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    return [(step, sum(here) / len(here)) for step, here in sorted(values.items())]


def _draw_legend(axis: Axes, scores: Scores, dotted: str | None = None) -> None:
    """Explains the line styles. dotted: what the dotted line shows, if there is one."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="#a63603", linestyle="-", label="LoRes"),
        Line2D([], [], color="#08519c", linestyle="--", label="HiRes"),
    ]
    if "midres" in scores.members:
        handles.insert(1, Line2D([], [], color="#525252", linestyle="-.", label="MidRes"))
    if dotted:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label=dotted))
    axis.legend(handles=handles, frameon=False, fontsize=9, loc="best", labelcolor=INK)
