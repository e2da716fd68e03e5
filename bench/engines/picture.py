"""The picture: time and peak memory relative to plain training, against K, P and m."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.common.results import Provenance
from cats.nmt.scoring.plots.style import COLOURS, INK, MARKERS, TEXT, label_ends, new_figure, save_figure

from .contenders import AUTO, CATS
from .records import EngineResults, Measured, OuterStep, WholeTraining
from .run import OTHERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Measured | WholeTraining
Points = dict[str, list[tuple[float, float]]]  # {name: points (x, y)}


def draw(source: Provenance, results: EngineResults, path: Path) -> None:
    """Draws time (above) and memory (below) against K, P and m, and writes PNG and SVG files."""
    save_figure(costs(source, results), path)


def costs(source: Provenance, results: EngineResults) -> Figure:
    """The picture of `draw`: two rows of three panels."""
    steps = results.outer_steps
    size = {m.name: m.parameters / 1e6 for m in results.models}
    first = results.models[0].name
    tasks = max((s.tasks for s in steps if s.tasks <= OTHERS), default=steps[0].tasks)
    kinds = {c.name: c.kind for step in steps for c in step.contenders}
    looks = {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]}
        for i, name in enumerate(kinds)
    }
    figure, axes = new_figure(6, rows=2, sharex="col", sharey="row", height=9.5)
    rows = axes[:3], axes[3:]
    for panels, text, value in zip(rows, ("time", "peak memory"), (time, memory), strict=True):
        of_tasks = contenders([s for s in steps if s.model == first], lambda s: s.tasks, value)
        of_size = contenders([s for s in steps if s.tasks == tasks], lambda s: size[s.model], value)
        for panel, points in zip(panels, (of_tasks, of_size), strict=False):
            for name, line in points.items():
                style = "-" if kinds[name] == CATS else "--"
                panel.plot(*zip(*sorted(line), strict=True), style, **looks[name], label=name, markersize=5)
        for name, line in trainings([s for s in steps if s.tasks == tasks], value).items():
            opacity = 0.4 + 0.6 * (name == first)
            panels[2].plot(*zip(*sorted(line), strict=True), "o-", color=INK, alpha=opacity, label=name)
        panels[0].set_ylabel(f"{text} / plain training")
        for panel in panels:
            decorate(panel)
    axes[0].set_xticks([s.tasks for s in steps if s.model == first])
    axes[0].set_title(f"a step that moves α:\n{first}", loc="left")
    axes[1].set_title(f"a step that moves α:\nK = {tasks}", loc="left")
    axes[2].set_title(f"training with auto:\nK = {tasks}", loc="left")
    for panel, text in zip(axes[3:], ("tasks K", "million parameters", "m: one of m steps moves α"), strict=True):
        panel.set_xlabel(text)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=TEXT - 1, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{source.machine.device(results.device)}, {source.date}", fontsize=TEXT)
    label_ends(axes[2], axes[5])
    return figure


def decorate(panel: Axes) -> None:
    """Logarithmic axes with plain numbers, and a line for plain training."""
    from matplotlib.ticker import LogLocator, NullLocator

    panel.axhline(1.0, color="grey", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")


def time(step: OuterStep, found: Found) -> float | None:
    return found.ratio.median


def memory(step: OuterStep, found: Found) -> float | None:
    return step.memory(found)


def contenders(
    steps: Sequence[OuterStep], x: Callable[[OuterStep], float], y: Callable[[OuterStep, Found], float | None]
) -> Points:
    """A line for each contender."""
    points: Points = {}
    for step in steps:
        for c in step.contenders:
            if value := y(step, c):
                points.setdefault(c.name, []).append((x(step), value))
    return points


def trainings(steps: Sequence[OuterStep], y: Callable[[OuterStep, Found], float | None]) -> Points:
    """A line for each model: whole training against m."""
    points: Points = {}
    for step in steps:
        found: list[tuple[int, Found]] = [(t.inner_steps, t) for t in step.training]
        found += [(1, c) for c in step.contenders if c.name == AUTO]
        for m, training in found:
            if value := y(step, training):
                points.setdefault(step.model, []).append((m, value))
    return points
