"""The picture of a comparison of methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cats.nmt.scoring.compare.results import Comparison
from cats.nmt.scoring.plots.style import begin_at_zero, label_points, method_style, new_grid, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draws the chrF of LoRes against that of HiRes, a panel for each set that has both groups.

    Large marks are means over seeds, bars their 95 % intervals, small dots the seeds. Nothing is drawn if no set has
    both groups.

    Args:
        comparison: the results to draw.
        path: the PNG file to write; an SVG file is written beside it.
    """
    figure = comparison_figure(comparison)
    if figure is not None:
        save_figure(figure, path)


def comparison_figure(comparison: Comparison) -> Figure | None:
    """The picture of `draw_comparison`. None: no set has both groups."""
    panels = {name: r for name, r in comparison.sets.items() if {"lores", "hires"} <= r.groups.keys()}
    if not panels:
        return None
    figure, axes = new_grid(len(panels), height=3.8)
    for axis, (name, result) in zip(axes, panels.items(), strict=True):
        means = {}
        for method, scores in result.methods.items():
            low, high = scores.groups["lores"].chrf, scores.groups["hires"].chrf
            x, y = means[method] = float(np.mean(low)), float(np.mean(high))
            style = method_style(method)
            axis.plot(low, high, ".", color=style.colour, alpha=0.4)
            axis.plot(scores.chrf_interval["lores"], [y, y], color=style.colour, alpha=0.5, linewidth=1)
            axis.plot([x, x], scores.chrf_interval["hires"], color=style.colour, alpha=0.5, linewidth=1)
            axis.plot([x], [y], linestyle="", label=method, zorder=3, **style.mark)
        axis.set_title(name, loc="left")
        axis.set_xlabel("LoRes chrF")
        axis.set_ylabel("HiRes chrF")
        begin_at_zero(axis)
        label_points(axis, means)
    return figure
