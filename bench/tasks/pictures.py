"""The pictures of docs/guide/settings.md: the rule of α with fixed gradients, and errors against each setting."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import cats
from cats.nmt.scoring.plots.style import COLOURS, MARKERS, label_ends, new_figure, new_grid, save_figure
from cats.weighting.cats import FLOOR, INNER_STEPS, STRENGTH

from .methods import REFERENCE, SETTINGS, setting
from .records import WeightingResults
from .tables import CATS, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# {name of a line: problem}
PROBLEMS = {"one task noisy": "regression, K=4, last task noisy", "all alike": "regression, K=4, equal tasks"}
DEFAULTS = {"strength": STRENGTH, "floor": FLOOR["proximal"], "inner_steps": INNER_STEPS}
EQUAL = {"strength": 0.0, "floor": 1.0}  # with these the weights are equal and stay so; a floor may only come near 1
NORMS = [2 ** (i / 4) for i in range(-12, 13)]  # of the second task's gradient; that of the first is 1
STEPS = 300
DASHES = ("-", "--", "-.", ":")


def draw(results: WeightingResults, folder: Path) -> None:
    """Writes settings-rule and settings-error, each as PNG and SVG."""
    save_figure(rule(), folder / "settings-rule.png")
    save_figure(errors(results), folder / "settings-error.png")


# --- the rule: two tasks whose gradients are orthogonal and do not change ---------------------------------------------


def alphas(norm: float, **settings: object) -> list[float]:
    """α of the second task before each of STEPS steps, with gradients of norm 1 and `norm`.

    settings: of cats.weighting.CATS.
    """
    weighting = cats.weighting.CATS(reduction="mean", **settings)  # type: ignore[arg-type]
    weighting.start(2)
    squares = torch.tensor([1.0, norm**2], dtype=torch.float64)
    nothing = torch.full_like(squares, torch.nan)  # the rule without the loss term does not look at the losses
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a weight is at its floor
        for step in range(1, STEPS + 1):
            alpha = weighting.weights()
            found.append(alpha[1].item())
            if step % weighting.period == 0:
                weighting.update(nothing, alpha * squares, squares, [0, 1])  # v_n = <g_n, ḡ> = α_n ‖g_n‖²
    return found


def rule() -> Figure:
    """Three panels with α at which the rule comes to rest, against the norm, and one with α against the step."""
    figure, axes = new_grid(4)
    panels = (
        ("strength", (0.25, STRENGTH, 1.0, 2.0), {"floor": 0.0}),
        ("floor", (0.0, DEFAULTS["floor"], 0.3, 0.6), {"strength": 1.0}),
        ("prior", ([1, 1], [3, 1], [1, 3]), {}),
    )
    for axis, (name, values, others) in zip(axes, panels, strict=False):
        lines = {}
        for value in values:
            shown = ":".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
            lines[shown] = [alphas(s, inner_steps=1, **{name: value}, **others)[-1] for s in NORMS]
        _lines(axis, NORMS, lines)
        fixed = ", ".join(f"{key} {value:g}" for key, value in others.items())
        axis.set_title(f"{name}" + (f"  ({fixed})" if fixed else ""), loc="left")
        axis.set_xscale("log", base=2)
        axis.set_xticks([1 / 8, 1 / 2, 2, 8], ["1/8", "1/2", "2", "8"])
        axis.set_xlabel("norm of its gradient / the other's")
    last = axes[-1]
    _lines(last, range(STEPS), {str(m): alphas(2.0, inner_steps=m) for m in (1, INNER_STEPS, 20, 100)})
    last.set_title("inner_steps  (norm 2)", loc="left")
    last.set_xlabel("step")
    for axis in axes:
        axis.set_ylim(0, 1 if axis is not last else 0.6)
        axis.set_ylabel("α of the task")
    label_ends(*axes)
    return figure


def _lines(axis: Axes, x: Sequence[float], lines: dict[str, list[float]]) -> None:
    for i, (name, y) in enumerate(lines.items()):
        axis.plot(x, y, DASHES[i], color=COLOURS[i], label=name)


# --- the trainings ----------------------------------------------------------------------------------------------------


def errors(results: WeightingResults) -> Figure:
    """The error of the worst task relative to equal weights, a panel for each setting. A small mark is a seed."""
    from matplotlib.ticker import LogLocator, NullLocator

    grid = Grid(results)
    figure, axes = new_figure(3, sharey=True)
    for axis, (name, values) in zip(axes, SETTINGS.items(), strict=True):
        methods = {value: setting(name, value) for value in values} | {DEFAULTS[name]: CATS}
        if name in EQUAL:
            methods[EQUAL[name]] = REFERENCE
        places = sorted(methods)
        for i, (line, problem) in enumerate(PROBLEMS.items()):
            seeds = [ratios(grid, problem, methods[value]) for value in places]
            look = {"color": COLOURS[i], "marker": MARKERS[i]}
            axis.plot([statistics.geometric_mean(each) for each in seeds], DASHES[i], **look, label=line)
            points = [(x, ratio) for x, each in enumerate(seeds) for ratio in each]
            axis.plot(*zip(*points, strict=True), **look, linestyle="none", markersize=3, alpha=0.5)
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(places)), ["→ 1" if (name, x) == ("floor", 1) else f"{x:g}" for x in places])
        axis.get_xticklabels()[places.index(DEFAULTS[name])].set_fontweight("bold")
        axis.set_xlabel(name)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("error / that of equal weights")
    label_ends(axes[-1])
    return figure


def ratios(grid: Grid, problem: str, method: str) -> list[float]:
    """The error of the worst task relative to that with equal weights, of each seed in which neither failed."""
    pairs = zip(grid.cells[problem, method], grid.cells[problem, REFERENCE], strict=True)
    return [ours.worst / equal.worst for ours, equal in pairs if not (ours.failure or equal.failure)]
