"""The picture of a comparison of methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cats.nmt.scoring.compare.results import Comparison
from cats.nmt.scoring.plots.style import new_figure, save_figure

_MARKERS = "osD^v"  # of methods, after each ten colours


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draws the chrF of LoRes against that of HiRes, a panel for each set that has both groups.

    Large marks are means over seeds, bars their 95 % intervals, small dots the seeds. Nothing is drawn if no set has
    both groups.

    Args:
        comparison: the results to draw.
        path: the PNG file to write.
    """
    panels = {name: r for name, r in comparison.sets.items() if {"lores", "hires"} <= r.groups.keys()}
    if not panels:
        return
    figure, axes = new_figure(len(panels))
    for axis, (name, result) in zip(axes, panels.items(), strict=True):
        for number, (method, scores) in enumerate(result.methods.items()):
            low, high = scores.groups["lores"].chrf, scores.groups["hires"].chrf
            x, y = float(np.mean(low)), float(np.mean(high))
            colour = f"C{number % 10}"
            axis.plot(low, high, ".", color=colour, alpha=0.4)
            axis.plot(scores.chrf_interval["lores"], [y, y], color=colour, alpha=0.5, lw=1)
            axis.plot([x, x], scores.chrf_interval["hires"], color=colour, alpha=0.5, lw=1)
            marker, size = ("*", 12) if method == "cats" else (_MARKERS[number // 10 % len(_MARKERS)], 7)
            axis.plot([x], [y], marker, ms=size, color=colour, label=method)
        axis.set_title(name)
        axis.set_xlabel("LoRes chrF")
        axis.set_ylabel("HiRes chrF")
    columns = 1 + (len(axes[0].get_legend_handles_labels()[1]) - 1) // 12
    axes[0].legend(frameon=False, fontsize=9 if columns == 1 else 6, ncols=columns)
    save_figure(figure, path)
