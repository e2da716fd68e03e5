"""The style of all pictures: figures and axes, labels at the ends of lines, and how a picture is saved."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#333333", "#dddddd"


def new_figure(panels: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, in the project's style. No window is opened.

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
    """Writes a figure as PNG. If that fails, an older file at `path` is kept."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())


def label_ends(axis: Axes) -> None:
    """Writes the name of each labelled line at its right end. Names that would overlap are moved apart.

    The scales of the axes must be set before.
    """
    gap = 0.055  # the height of a line of text, as a share of the axes' height
    axis.autoscale_view()  # matplotlib would do this later, but the heights below depend on it
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
    """Moves ascending heights as little as possible (least squares) so that they are `gap` apart and in 0.03 .. 1."""
    # After subtracting i * gap from height i this is isotonic regression: neighbours in the wrong order are merged into
    # a block that gets their mean.
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
