"""The picture: time and peak memory relative to plain training, against K, P and m."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.common.results import Provenance
from cats.nmt.files import atomic_file

from .contenders import AUTO, CATS
from .records import EngineResults, Measured, OuterStep, WholeTraining
from .run import OTHERS

Found = Measured | WholeTraining
Points = dict[str, list[tuple[float, float]]]  # {name: points (x, y)}


def draw(source: Provenance, results: EngineResults, path: Path) -> None:
    """Draws time (above) and memory (below) against K, P and m, and writes a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = results.outer_steps
    size = {m.name: m.parameters / 1e6 for m in results.models}
    first = results.models[0].name
    tasks = max((s.tasks for s in steps if s.tasks <= OTHERS), default=steps[0].tasks)
    kinds = {c.name: c.kind for step in steps for c in step.contenders}
    colours = dict(zip(kinds, plt.get_cmap("tab20").colors, strict=False))
    figure, panels = plt.subplots(2, 3, figsize=(14, 8), layout="constrained", sharex="col", sharey="row")
    for axes, text, value in zip(panels, ("time", "peak memory"), (time, memory), strict=True):
        of_tasks = contenders([s for s in steps if s.model == first], lambda s: s.tasks, value)
        of_size = contenders([s for s in steps if s.tasks == tasks], lambda s: size[s.model], value)
        for panel, points in zip(axes, (of_tasks, of_size), strict=False):
            for name, line in points.items():
                style = "o-" if kinds[name] == CATS else "s--"
                panel.plot(*zip(*sorted(line), strict=True), style, color=colours[name], label=name, markersize=4)
        for name, line in trainings([s for s in steps if s.tasks == tasks], value).items():
            axes[2].plot(*zip(*sorted(line), strict=True), "o-", color="black", alpha=0.4 + 0.6 * (name == first))
            axes[2].annotate(name, max(line), fontsize=8)
        axes[0].set_ylabel(f"{text} / plain training")
        for panel in axes:
            decorate(panel)
    panels[0][0].set_xticks([s.tasks for s in steps if s.model == first])
    panels[0][0].set_title(f"a step that moves α: {first}", fontsize=10)
    panels[0][1].set_title(f"a step that moves α: K = {tasks}", fontsize=10)
    panels[0][2].set_title(f"training with the engine auto: K = {tasks}", fontsize=10)
    for panel, text in zip(
        panels[1], ("tasks K", "parameters P, in millions", "m: one of m steps moves α"), strict=True
    ):
        panel.set_xlabel(text)
    figure.legend(*panels[0][0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    figure.suptitle(f"{source.machine.device(results.device)}, {source.date}", fontsize=10)
    try:
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=120)
    finally:
        plt.close(figure)


def decorate(panel: Any) -> None:
    """Logarithmic axes with plain numbers, and a line for plain training."""
    from matplotlib.ticker import LogLocator, NullLocator

    panel.axhline(1.0, color="grey", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    panel.grid(alpha=0.3)


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
