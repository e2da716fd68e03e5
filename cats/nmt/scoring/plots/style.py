"""The style of all pictures: colours, figures and axes, labels beside what they name, and how a picture is saved."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from cats.extras import install
from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#333333", "#dddddd"
WIDTH = 8.4  # inches
TEXT = 11  # points, at this width
_LINE = 1.3 * TEXT  # the height of a line of text
HIDDEN = "_line: "  # starts the label of a line whose name is not drawn; matplotlib leaves out labels with "_"
_LABEL = 1.06  # where names start beside axes, as a share of their width

# The colours of Okabe and Ito (Color Universal Design, 2008, https://jfly.uni-koeln.de/color/), which people with any
# kind of colour vision can tell apart, without yellow, which is too light for lines on white.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# The methods in the order of their colours and markers. After each seven the colours start again, with other markers.
# Add names at the end: in any other place, the methods behind it would get other colours than in older pictures.
_PLACES = (
    *("cats", "T=1", "T=inf", "uniform", "staged", "T=5", "tokens"),
    *("multidds", "temperature", "rlw", "gradnorm", "pretrain-finetune", "T=3", "static"),
    *("multidds-s", "restart", "famo", "group-dro", "unimax", "lowres-finetune", "ratios"),
    *("mgda", "temperature-schedule", "pcgrad", "cvar-dro", "gradvac", "chi-square-dro", "uncertainty"),
    *("dwa", "graddrop", "target-projection", "adaptive", "bandit", "chi-square-ibr", "doremi"),
    *("double-power-law", "mirror", "lssd", "T=2", "T=10", "T=100", "T=20"),
    "staged-cats",
)
_SAME = {"pretrain": "pretrain-finetune"}  # two names of one method
_FORM = re.compile(r"(T=(?:inf|[\d.]+))(r?)|(.+?)((?:-r|-staged|-fixed)*)", re.DOTALL)
_DASHES: dict[str, Any] = {"": "-", "r": "--", "-r": "--", "-staged": "-.", "-fixed": ":"}
_OTHER_DASHES = ((0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 1, 2)))


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn. In grey, the marker and the dashes tell methods apart.

    Attributes:
        colour: "#rrggbb".
        marker: a marker of matplotlib.
        dash: a line style of matplotlib.
        filled: whether the marker is filled. It is hollow for a form of a method, such as that with a restart.
    """

    colour: str
    marker: str
    dash: Any
    filled: bool

    @property
    def mark(self) -> dict[str, Any]:
        """The arguments of matplotlib's plot() for the markers."""
        fill = self.colour if self.filled else "white"
        return {"marker": self.marker, "markerfacecolor": fill, "markeredgecolor": self.colour, "markersize": 6}


def method_style(name: str) -> MethodStyle:
    """How a method is drawn in every picture. It follows from the name alone, also for names that nobody knows.

    Args:
        name: as in ``cats.nmt.scoring.grid.methods``: cats, T=3, T=3r, cats-r-fixed, a variant, .. A form of a method
            has its colour and marker, with other dashes and a hollow marker; so has "NAME, settings".
    """
    name, _, settings = name.partition(", ")
    match = _FORM.fullmatch(name)
    base, form = (match[1] or match[3], match[2] or match[4] or "") if match else (name, "")
    base = _SAME.get(base, base)
    # A checksum, not hash(): that differs from process to process.
    place = _PLACES.index(base) if base in _PLACES else zlib.crc32(base.encode("utf-8", "replace"))
    more = form + settings
    return MethodStyle(
        colour=COLOURS[place % len(COLOURS)],
        marker=MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
        dash=_DASHES[more] if more in _DASHES else _OTHER_DASHES[zlib.crc32(more.encode()) % len(_OTHER_DASHES)],
        filled=not more,
    )


def method_colour(name: str) -> str:
    """The colour of a method in every picture, as "#rrggbb"; see ``method_style``."""
    return method_style(name).colour


def text_colour(colour: Any) -> str:
    """A colour darkened as far as text needs to be read on white: a contrast of 4.5 to 1 (WCAG 2.1, 1.4.3)."""
    from matplotlib.colors import to_hex, to_rgb

    rgb = np.asarray(to_rgb(colour))
    while 1.05 / (_luminance(rgb) + 0.05) < 4.5:
        rgb = rgb * 0.95
    return to_hex((rgb[0], rgb[1], rgb[2]))


def text_on(colour: Any) -> str:
    """Black or white: the one that is read better on a colour."""
    from matplotlib.colors import to_rgb

    # The contrasts of WCAG are (L + 0.05) / 0.05 with black and 1.05 / (L + 0.05) with white.
    return "#000000" if (_luminance(np.asarray(to_rgb(colour))) + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def _luminance(rgb: np.ndarray) -> float:
    """The relative luminance of WCAG 2.1, 0 to 1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def new_figure(
    panels: int,
    *,
    rows: int = 1,
    sharex: bool | Literal["col"] = False,
    sharey: bool | Literal["row"] = False,
    height: float | None = None,
    labels: int = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure with rows of panels, in the project's style. No window is opened.

    Args:
        panels: in all rows together; a multiple of `rows`.
        sharex, sharey: as for ``matplotlib.figure.Figure.subplots``.
        height: in inches, of the whole figure.
        labels: how many names each panel must have room for at its right; it makes the figure as high as that needs.

    Returns:
        The figure, and its panels row by row.

    Raises:
        UserError: matplotlib is missing.
    """
    _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = height or {1: 3.8 if panels > 1 else 4.2}.get(rows, 0.4 + 2.9 * rows)
    height = max(height, rows * (1.0 + labels * _LINE / 72))
    figure = Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, panels // rows, sharex=sharex, sharey=sharey, squeeze=False)
    axes = list(grid.flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(colors=INK, labelsize=TEXT)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_color(INK)
            label.set_size(TEXT)
        axis.title.set_size(TEXT + 1)
    return figure, axes


def new_grid(panels: int, *, share: bool = False, height: float | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with panels in rows of two: more beside each other would leave no room for names.

    Args:
        share: whether all panels have the same scales.
        height: in inches, of a row.

    Returns:
        The figure, and its panels row by row.
    """
    columns = min(2, panels)
    rows = -(-panels // columns)
    whole = None if height is None else height * rows
    figure, axes = new_figure(rows * columns, rows=rows, sharex=share, sharey=share, height=whole)
    for axis in axes[panels:]:
        axis.remove()
    return figure, axes[:panels]


def _import_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(f"pictures need matplotlib; install it with: {install('nmt')}") from None


def short_numbers(axis: Axes) -> None:
    """Few ticks at the bottom, of whole numbers, with 2k for 2000 and 2M for 2,000,000."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Writes a figure as PNG and as SVG, each completely or not at all: if it fails, an older file is kept.

    The SVG is the same in every run. Its text stays text: it can be searched, read aloud and edited, and the file is
    small. Where a reader lacks the font, DejaVu Sans, the usual replacements are narrower, so that nothing overlaps.

    Args:
        path: of the PNG, or of both without the suffix.

    Returns:
        The two files.
    """
    from matplotlib import rc_context

    stem = str(path).removesuffix(".png").removesuffix(".svg")
    files = [Path(f"{stem}.png"), Path(f"{stem}.svg")]
    with rc_context({"svg.hashsalt": "cats", "svg.fonttype": "none"}):
        for file, metadata in zip(files, ({}, {"Date": None}), strict=True):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=file.suffix[1:], metadata=metadata)
            atomic_write(file, buffer.getvalue())
    return files


@contextmanager
def without_formulas() -> Iterator[None]:
    """In the block, names with dollar signs are drawn as they are. Elsewhere they are formulas for matplotlib.

    Raises:
        UserError: matplotlib is missing.
    """
    _import_matplotlib()
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        yield


def label_ends(*axes: Axes) -> None:
    """Writes the name of each labelled line at its last point. Names that would overlap are moved apart.

    Args:
        axes: of one figure. Their scales must be set before.
    """
    from matplotlib.lines import Line2D

    unit = _lay_out(axes[0])
    for axis in axes:
        gap = _LINE * unit / axis.get_window_extent().height  # a line of text, as a share of the axes' height
        ends = []
        for line in axis.get_lines():
            points = np.asarray(line.get_xydata())
            points = points[np.isfinite(points).all(axis=1)]  # others are not drawn
            if len(points) and not str(line.get_label()).startswith("_"):
                x, y = axis.transAxes.inverted().transform(axis.transData.transform(points[-1]))
                ends.append((float(np.clip(y, 0, 1)), float(x), line))  # a line may end above the picture
        ends.sort(key=lambda end: end[0])
        heights = _spread([end for end, *_ in ends], gap)
        for height, (end, right, line) in zip(heights, ends, strict=True):
            # A thin line to the name, which ends in the mark of the line, if it has one: the way to find it in grey.
            marked = line.get_marker() not in ("None", "", None)
            leader = Line2D(
                [right + 0.005, _LABEL],
                [end, height],
                color=line.get_color(),
                linewidth=0.6,
                marker=line.get_marker(),
                markersize=line.get_markersize(),
                markerfacecolor=line.get_markerfacecolor(),
                markeredgecolor=line.get_markeredgecolor(),
                markevery=[1],
                label="_leader",
                transform=axis.transAxes,
                clip_on=False,
            )
            axis.add_artist(leader)
            axis.annotate(
                str(line.get_label()),
                (_LABEL, height),
                (6 if marked else 2, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                color=text_colour(line.get_color()),
                fontsize=TEXT,
                va="center",
            )


def _lay_out(axis: Axes) -> float:
    """Computes the sizes and limits of all axes, which places depend on. Returns the pixels of a point (1/72 inch)."""
    from matplotlib.figure import Figure

    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure.dpi / 72


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves ascending heights as little as possible (least squares) so that they are `gap` apart and in 0.03 .. 1.

    If there is no room for that, they are less than `gap` apart.
    """
    gap = min(gap, 0.97 / max(1, len(heights) - 1))
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


def begin_at_zero(axis: Axes) -> None:
    """Cuts off what the axes show of numbers below 0, which no score and no loss can be."""
    axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
    axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))


def label_points(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Writes the name of each point beside it, in the colour of the method of this name, where there is room.

    Args:
        points: {method: (x, y)} in data coordinates. The scales of the axes must be set before.
    """
    place_texts(axis, [(name, point, method_colour(name)) for name, point in points.items()])


def place_texts(
    axis: Axes, texts: Sequence[tuple[str, tuple[float, float], str]], others: Sequence[tuple[float, float]] = ()
) -> None:
    """Writes texts beside points, where there is room. The scales of the axes must be set before.

    They keep off each other, and off what was written on the axes before.

    Args:
        texts: the text, the point in data coordinates, and the colour.
        others: more points that the texts should not cover.
    """
    from matplotlib.text import Text

    unit = _lay_out(axis)
    frame = Box(*axis.get_window_extent().extents)
    centres = [axis.transData.transform(point) for _, point, _ in texts]
    marks = [*centres, *(axis.transData.transform(point) for point in others)]
    taken = [Box(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in marks]
    taken += [Box(*text.get_window_extent().extents) for text in axis.texts]
    for (name, point, colour), (x, y) in sorted(zip(texts, centres, strict=True), key=lambda each: -each[1][1]):
        text = axis.annotate(
            name,
            point,
            (0, 0),
            textcoords="offset points",
            fontsize=TEXT,
            color=text_colour(colour),
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},  # bars may run behind it
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )
        extent = Text.get_window_extent(text)  # that of an annotation includes its line
        box = _free_place((x, y), (extent.width, extent.height), taken, frame, unit)
        taken.append(box)
        text.set_position(((box.left - x) / unit, (box.bottom - y) / unit))


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area in both."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def _free_place(centre: Any, size: tuple[float, float], taken: Sequence[Box], frame: Box, unit: float) -> Box:
    """The nearest place for a text beside a point that overlaps nothing; else the one that overlaps least.

    It may reach over the right edge of the frame, but over no other.
    """
    (x, y), (width, height) = centre, size
    places = []
    for distance in (7, 16, 28, 42, 60):  # points
        for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            left = x + right * distance * unit - width * (1 - right) / 2
            bottom = y + up * distance * unit - height * (1 - up) / 2
            box = Box(left, bottom, left + width, bottom + height)
            outside = box.left < frame.left or box.bottom < frame.bottom or box.top > frame.top
            overlap = sum(box.overlap(other) for other in taken)
            if not outside and not overlap:
                return box
            places.append((outside, overlap, distance, box))
    return min(places)[-1]
