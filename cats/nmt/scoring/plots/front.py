"""The picture of `cats pareto`: trade-off fronts of two sides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cats.nmt.scoring.pareto.results import METRICS, STATIC, Front, Fronts, is_loss
from cats.nmt.scoring.plots.style import INK, TEXT, begin_at_zero, method_style, new_figure, place_texts, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_fronts(fronts: Fronts, path: Path) -> None:
    """Draws the score of the low side against that of the high side, a panel for each front.

    Large marks are means over the seeds, in the order of the ratios, which are written beside those of static ratios.
    Small dots are the seeds. The curve is the front of static ratios, and what lies behind it is shaded.

    Args:
        fronts: the results to draw.
        path: the PNG file to write; an SVG file is written beside it.
    """
    save_figure(fronts_figure(fronts), path)


def fronts_figure(fronts: Fronts) -> Figure:
    """The picture of `draw_fronts`. The panels are below each other, so that there is room for names.

    Fronts without a score have no panel.
    """
    drawn = fronts.drawn
    figure, axes = new_figure(len(drawn), rows=len(drawn))
    for axis, front in zip(axes, drawn, strict=True):
        _draw(axis, front, fronts.metric)
    return figure


def _draw(axis: Axes, front: Front, metric: str) -> None:
    better = -1 if is_loss(metric) else 1  # the direction of better scores on both axes
    means: dict[str, np.ndarray] = {}
    for method, found in front.methods.items():
        style = method_style(method)
        # The high side is drawn from left to right, the low side from bottom to top.
        points = np.array([point.mean[::-1] for point in found.points])
        means[method] = points
        for point in found.points:
            if len(point.seeds) > 1:
                axis.plot(point.high, point.low, ".", color=style.colour, alpha=0.4, markersize=4)
        line = "" if method == STATIC else style.dash
        axis.plot(*points.T, linestyle=line, color=style.colour, linewidth=1.2, zorder=3, **style.mark)
    if front.curve:
        curve = np.array(front.curve)[:, ::-1]
        axis.plot(*curve.T, color=method_style(STATIC).colour, linewidth=1.6, zorder=2)
    _shade(axis, front, better)
    axis.set_title(front.title, loc="left")
    axis.set_xlabel(f"{front.high.name} {METRICS[metric]}")
    axis.set_ylabel(f"{front.low.name} {METRICS[metric]}")
    axis.margins(0.12)
    begin_at_zero(axis)
    for point in front.methods[STATIC].points if STATIC in front.methods else ():
        axis.annotate(
            f"{point.ratio:g}",
            point.mean[::-1],
            (5 * better, 5 * better),  # on the empty side of the front
            textcoords="offset points",
            ha="right" if better < 0 else "left",
            va="top" if better < 0 else "bottom",
            fontsize=TEXT - 1,
            color=INK,
        )
    names = [(method, point, method_style(method).colour) for method, point in _places(means).items()]
    place_texts(axis, names, [(float(x), float(y)) for points in means.values() for x, y in points])


def _shade(axis: Axes, front: Front, better: int) -> None:
    """Shades what static ratios dominate: what is worse on both sides than a point of their front."""
    if not front.curve:
        return
    limits = axis.get_xlim(), axis.get_ylim()
    losses = -better * np.array(front.curve)[:, ::-1]  # lower is better
    losses = losses[losses[:, 0].argsort()]
    end, bound = (max(-better * value for value in limit) for limit in limits)
    x = np.append(losses[:, 0], end)
    level = np.minimum.accumulate(losses[:, 1])[[*range(len(losses)), -1]]
    axis.fill_between(-better * x, -better * level, -better * bound, color=INK, alpha=0.06, linewidth=0, zorder=0)
    axis.set_xlim(limits[0])
    axis.set_ylim(limits[1])


def _places(means: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """For each method the point that is furthest from those of the others, to write its name beside it."""
    everything = np.concatenate(list(means.values()))
    scale = np.ptp(everything, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    found = {}
    for method, points in means.items():
        others = [each for name, each in means.items() if name != method]
        far = np.zeros(len(points))
        if others:
            apart = (points[:, None] - np.concatenate(others)[None]) / scale
            far = np.sqrt((apart**2).sum(-1)).min(-1)
        x, y = points[int(far.argmax())]
        found[method] = (float(x), float(y))
    return found
