"""Curves over the updates with a line for each language: losses, task weights, examples seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cats.nmt.scoring.plots.runs import NothingToDraw, PlottedRun, Runs
from cats.nmt.scoring.plots.series import (
    Curve,
    Records,
    alpha_shares,
    mean,
    mean_of_seeds,
    seen,
    training_nll,
    validation,
)
from cats.nmt.scoring.plots.style import HIDDEN, INK, TEXT, label_ends, new_figure, new_grid, save_figure, short_numbers
from cats.nmt.scoring.scores import TITLES, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 12  # with more languages, only the means of the groups are labelled
# The colour map of each group's languages, its line style, and the colour of its mean. Orange and blue are different
# for everybody; in grey, the line styles tell the groups apart.
_GROUPS: dict[str, tuple[str, Any, str]] = {
    "lores": ("Oranges", "-", "#a63603"),
    "midres": ("Greys", "-.", "#525252"),
    "hires": ("Blues", "--", "#08519c"),
}


def draw_loss(records: Records, scores: Scores, path: Path) -> None:
    """Draws the NLL of each language over the updates: on training text (a running mean) and on validation text.

    Args:
        records: the lines of metrics.jsonl.
        scores: groups and training pairs of the languages.
        path: the PNG file to write; an SVG file is written beside it.
    """
    save_figure(loss_figure(records, scores), path)


def loss_figure(records: Records, scores: Scores) -> Figure:
    """The picture of `draw_loss`."""
    names = _by_size(scores.pairs)
    panels = {
        "training (running mean)": {name: training_nll(records, name) for name in names},
        "validation": {name: validation(records, name, "nll") for name in names},
    }
    panels = {title: curves for title, curves in panels.items() if any(curves.values())} or {"training": {}}
    figure, axes = new_figure(len(panels), sharey=True)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        draw_languages(axis, curves, scores.members)
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel("update")
        short_numbers(axis)
    axes[0].set_ylabel("NLL, nats per target token")
    label_ends(axes[-1])
    _draw_legend(axes[0], scores.members)
    return figure


def draw_alpha(records: Records, scores: Scores, path: Path) -> None:
    """Draws each task's share of the sum of α over the updates, and the share of uniform weights as a dotted line.

    The curves are running means: with a prior of token shares, α follows what is in each batch. The scale is
    logarithmic unless a weight is 0.

    Args:
        records: the lines of metrics.jsonl.
        scores: groups and training pairs of the languages, and the method.
        path: the PNG file to write; an SVG file is written beside it.
    """
    save_figure(alpha_figure(records, scores), path)


def alpha_figure(records: Records, scores: Scores) -> Figure:
    """The picture of `draw_alpha`."""
    shares = alpha_shares(records)
    curves = {name: shares[name] for name in _by_size(scores.pairs) if name in shares}
    figure, (axis,) = new_figure(1)
    draw_languages(axis, curves, scores.members)
    _set_share_scale([axis], curves.values())
    axis.set_xlabel("update")
    short_numbers(axis)
    axis.set_ylabel("α, share of the total (running mean)")
    axis.set_title(f"task weights, method {scores.run.method}", loc="left", color=INK)
    label_ends(axis)
    _draw_legend(axis, scores.members, dotted="uniform")
    return figure


def alphas(runs: Runs) -> Figure:
    """α of each language over the updates, a panel for each method: the mean over its seeds of the running means.

    Methods whose weights never change have no panel.

    Raises:
        NothingToDraw: no run has weights that change.
    """
    by_run = {run.path: alpha_shares(run.records) for run in runs.runs}
    found = _by_method(runs, lambda run, task: by_run[run.path].get(task, []))
    found = {method: curves for method, curves in found.items() if any(map(_changes, curves.values()))}
    if not found:
        raise NothingToDraw("no run has weights that change")
    figure, axes = _panels(found, runs.groups)
    _set_share_scale(axes, [curve for curves in found.values() for curve in curves.values()])
    return _with_names(figure, axes, "α, share of the total", runs.groups, dotted="uniform")


def examples(runs: Runs) -> Figure:
    """How many sentence pairs of each language a model was trained on so far, a panel for each method.

    The mean over the seeds.

    Raises:
        NothingToDraw: no run has recorded it, as runs of older versions.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    # A language that is not trained yet has no line: its 0 has no place on a logarithmic scale.
    found = _by_method(runs, lambda run, task: [each for each in seen(run.records, [task], "examples") if each[1]])
    if not found:
        raise NothingToDraw("no run has the examples of each language in its metrics; train it again")
    figure, axes = _panels(found, runs.groups)
    for axis in axes:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.yaxis.set_minor_locator(NullLocator())
    return _with_names(figure, axes, "sentence pairs seen", runs.groups)


def draw_languages(axis: Axes, curves: Mapping[str, Curve], groups: Mapping[str, Sequence[str]]) -> None:
    """Draws one line for each language. With many languages the lines are thin, and the groups' means are bold.

    Args:
        curves: {language: its curve}, in the order of their shades, the darkest first. Empty ones are left out.
        groups: {group: languages}; one that is in neither LoRes nor MidRes is drawn as HiRes.
    """
    from matplotlib import colormaps

    names = [name for name, curve in curves.items() if curve]
    few = len(names) <= _MOST_LABELS
    group_of = {name: group for group in ("lores", "midres") for name in groups.get(group, ())}
    for group, (palette, style, bold) in _GROUPS.items():
        members = [name for name in names if group_of.get(name, "hires") == group]
        for i, name in enumerate(members):
            colour = colormaps[palette](0.95 - 0.45 * i / max(1, len(members) - 1))
            width, opacity, label = (1.6, 1.0, name) if few else (0.7, 0.4, HIDDEN + name)
            axis.plot(*_columns(curves[name]), style, color=colour, linewidth=width, alpha=opacity, label=label)
        if members and not few:
            means = mean(curves[name] for name in members)
            title = TITLES[group if groups.get(group) else "all"]
            axis.plot(*_columns(means), style, color=bold, linewidth=2.4, label=title)
    axis.set_xlim(0, max((curves[name][-1][0] for name in names), default=1))


def _by_method(runs: Runs, curve: Callable[[PlottedRun, str], Curve]) -> dict[str, dict[str, Curve]]:
    """{method: {task: the mean over its seeds}}, without methods that have no curve at all."""
    found = {
        method: {task: mean_of_seeds(curve(run, task) for run in seeds) for task in runs.tasks}
        for method, seeds in runs.methods.items()
    }
    return {method: curves for method, curves in found.items() if any(curves.values())}


def _panels(found: Mapping[str, Mapping[str, Curve]], groups: Mapping[str, Sequence[str]]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each method, with a line for each language."""
    figure, axes = new_grid(len(found), share=True)
    for axis, (method, curves) in zip(axes, found.items(), strict=True):
        draw_languages(axis, curves, groups)
        axis.set_title(method, loc="left", color=INK)
        short_numbers(axis)
    for axis in axes[-2:]:
        axis.set_xlabel("update")
        axis.tick_params(labelbottom=True)
    axes[0].set_xlim(0, max(curve[-1][0] for curves in found.values() for curve in curves.values() if curve))
    return figure, axes


def _with_names(
    figure: Figure, axes: Sequence[Axes], title: str, groups: Mapping[str, Sequence[str]], dotted: str | None = None
) -> Figure:
    """The figure with the names of the languages at the right of each row. The scales must be set before."""
    for axis in axes[::2]:
        axis.set_ylabel(title)
    label_ends(*axes[1:-1:2], axes[-1])
    _draw_legend(axes[0], groups, dotted)
    return figure


def _changes(curve: Curve) -> bool:
    values = [value for _, value in curve]
    return bool(values) and max(values) - min(values) > 1e-9


def _set_share_scale(axes: Sequence[Axes], curves: Iterable[Curve]) -> None:
    """Adds the share of uniform weights as a dotted line. The scale is logarithmic, unless a share is 0."""
    curves = [curve for curve in curves if curve]
    uniform = len(axes) / max(len(axes), len(curves))
    for axis in axes:
        axis.axhline(uniform, color=INK, linewidth=0.9, linestyle=":", zorder=1)
    values = [value for curve in curves for _, value in curve]
    if values and min(values) > 0:
        _set_log_scale(axes[0], uniform)


def _set_log_scale(axis: Axes, uniform: float) -> None:
    """Makes the scale of task weights logarithmic, with readable ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_yscale("log")
    # Small changes must look small in the picture, so the axis shows at least 10 % above and below the uniform weight.
    low, high = axis.get_ylim()
    low, high = min(low, uniform / 1.1), max(high, uniform * 1.1)
    axis.set_ylim(low, high)
    # By default matplotlib has ticks at powers of ten only.
    axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]) if high < 3 * low else LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _by_size(pairs: Mapping[str, int]) -> list[str]:
    """The tasks, those with the fewest training pairs first."""
    return sorted(pairs, key=lambda name: (pairs[name], name))


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]


def _draw_legend(axis: Axes, groups: Mapping[str, Sequence[str]], dotted: str | None = None) -> None:
    """Explains the line styles. dotted: what the dotted line shows, if there is one."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linestyle=style, label=TITLES[group])
        for group, (_, style, colour) in _GROUPS.items()
        if groups.get(group)
    ]
    if dotted:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label=dotted))
    axis.legend(handles=handles, frameon=False, fontsize=TEXT, loc="best", labelcolor=INK)
