"""The roofline picture of the operators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.common.results import Provenance
from cats.nmt.scoring.plots.style import COLOURS, INK, TEXT, new_figure, place_texts, save_figure

from .contender import BACKEND, COMPILED, EAGER, TORCHJD
from .records import OperatorResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The marker of each kind.
MARKS = {BACKEND: "o", EAGER: "v", COMPILED: "s", TORCHJD: "D"}


def draw(source: Provenance, results: OperatorResults, path: Path) -> None:
    """Draws operations per second against operations per byte, with the roofline of this run. Writes PNG and SVG.

    Shows flat float32 cases, and nothing is written if there are none.
    """
    figure = roofline(source, results)
    if figure is not None:
        save_figure(figure, path)


def roofline(source: Provenance, results: OperatorResults) -> Figure | None:
    """The picture of `draw`. The number of tasks K is written beside the mark of each backend's result."""
    cases = [c for c in results.cases if c.dtype == "float32" and c.layout == "flat"]
    if not cases:
        return None
    from matplotlib.lines import Line2D

    figure, (axes,) = new_figure(1, height=6.5)
    operators = list(dict.fromkeys(c.operator for c in cases))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(operators)}
    seen: set[str] = set()
    intensities = []
    texts, others = [], []
    for case in cases:
        intensity = case.operations / (case.bytes_read + case.bytes_written)
        intensities.append(intensity)
        for kind, mark in MARKS.items():
            c = case.best(kind)
            if c is None:
                continue
            colour = colours[case.operator]
            speed = case.operations / c.seconds.median / 1e9
            fill, size = (colour, 7) if kind == BACKEND else ("none", 5)
            axes.plot(intensity, speed, mark, color=colour, markerfacecolor=fill, markersize=size, label="_mark")
            seen.add(kind)
            if kind == BACKEND:
                texts.append((f"{case.tasks}", (intensity, speed), colour))
            else:
                others.append((intensity, speed))
    # The roofline is for reads and writes at different addresses. In-place updates (combine_adamw_) can be faster.
    streams = [c for c in cases if c.operator != "combine_adamw_"] or cases
    beyond_caches = [c for c in streams if c.bytes_read >= 10**8] or streams
    speed, peak = max(c.limit.memory_gb_per_s for c in beyond_caches), results.peaks["float32"] / 1e9
    low, high = min(intensities) / 2, max(*intensities, peak / speed) * 2
    axes.plot([low, peak / speed, high], [low * speed, peak, peak], color=INK, linewidth=1, label="_roofline")
    axes.text(low * 1.05, low * speed * 2, f"{speed:.3g} GB/s", fontsize=TEXT)
    axes.text(high / 1.1, peak * 1.1, f"{peak:.3g} GFLOP/s", ha="right", fontsize=TEXT)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=peak * 2)
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("GFLOP/s")
    backends = sorted({c.name for case in cases for c in case.contenders if c.kind == BACKEND} - {"reference"})
    labels = {
        BACKEND: f"{'/'.join(backends) or 'reference'}, with K",
        EAGER: "best eager",
        COMPILED: "best compiled",
        TORCHJD: "TorchJD",
    }
    handles = [Line2D([], [], color=colour, linewidth=3, label=op) for op, colour in colours.items()]
    handles += [
        Line2D(
            [], [], color=INK, marker=mark, linestyle="", fillstyle="full" if k == BACKEND else "none", label=labels[k]
        )
        for k, mark in MARKS.items()
        if k in seen
    ]
    figure.legend(handles=handles, fontsize=TEXT - 1, loc="outside lower center", ncols=4, frameon=False)
    name = source.machine.gpu if results.device == "cuda" else source.machine.cpu
    axes.set_title(f"{name}, float32, {source.date}", loc="left")
    place_texts(axes, texts, others)
    return figure
