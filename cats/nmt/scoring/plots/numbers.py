"""The numbers of a picture as CSV, so that they can be read, cited and drawn again elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from operator import methodcaller
from typing import TYPE_CHECKING

import numpy as np

from cats.nmt.scoring.plots.style import HIDDEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("panel", "horizontal", "vertical", "line", "x", "y")


def figure_csv(figure: Figure) -> str:
    """A row for each point of each line that has a name, and for each cell of each matrix.

    The columns are those of `COLUMNS`: the title of the panel, the titles of its axes, the name of the line (for a
    matrix, of its row) and the point (for a matrix, the name of the column and the value). Points and cells without a
    finite value have no row.

    Returns:
        The content of the file. Without such a line, only the line with the names of the columns.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    panels = [axis for axis in figure.axes if axis.get_subplotspec()]
    titles = methodcaller("get_title", "left"), methodcaller("get_xlabel"), methodcaller("get_ylabel")
    for axis in panels:
        where = [_of_neighbours(axis, panels, title) for title in titles]
        writer.writerows([*where, *row] for row in (*_points(axis), *_cells(axis)))
    return text.getvalue()


def _points(axis: Axes) -> Iterator[tuple[str, str, str]]:
    """The name of the line, x and y of all points that are drawn."""
    names = {place: text for place, text in _ticks(axis, "x").items() if not _shows(text, place)}
    for line in axis.get_lines():
        label = str(line.get_label())
        if label.startswith("_") and not label.startswith(HIDDEN):  # a mark or a guide of the picture
            continue
        for x, y in np.asarray(line.get_xydata()):
            if np.isfinite([x, y]).all():
                yield label.removeprefix(HIDDEN), names.get(float(x), f"{x:.12g}"), f"{y:.12g}"


def _cells(axis: Axes) -> Iterator[tuple[str, str, str]]:
    """The row, the column and the value of the cells of matrices. Without names they are counted from 1."""
    rows, columns = _ticks(axis, "y"), _ticks(axis, "x")
    for image in axis.images:
        values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array()), np.nan)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                yield rows.get(i, str(i + 1)), columns.get(j, str(j + 1)), f"{value:.12g}"


def _ticks(axis: Axes, which: str) -> dict[float, str]:
    """{place: text} of ticks with given texts."""
    from matplotlib.ticker import FixedLocator

    one = axis.xaxis if which == "x" else axis.yaxis
    locator = one.get_major_locator()
    if not isinstance(locator, FixedLocator):
        return {}
    places = [*map(float, locator.tick_values(0, 0))]
    return dict(zip(places, one.get_major_formatter().format_ticks(places), strict=True))


def _shows(text: str, place: float) -> bool:
    """Whether the text of a tick is the number that it stands at; else the tick stands for something else."""
    try:
        return float(text.replace(",", "")) == place
    except ValueError:
        return False


def _of_neighbours(axis: Axes, panels: Iterable[Axes], text: Callable[[Axes], str]) -> str:
    """A text of a panel. Panels that share it have it once: then it is that of the same column, or of the same row."""
    if found := text(axis):
        return found
    for span in ("colspan", "rowspan"):
        for other in panels:
            if getattr(other.get_subplotspec(), span) == getattr(axis.get_subplotspec(), span) and text(other):
                return text(other)
    return ""
