"""Curves with a line for each method, the mean over its seeds: losses, validation scores, generalisation gap, .."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cats.nmt.scoring.plots.runs import NothingToDraw, PlottedRun, Runs, first_tasks
from cats.nmt.scoring.plots.series import (
    TOKENS,
    UPDATES,
    Axis,
    Curve,
    against,
    difference,
    mean,
    mean_of_seeds,
    seen,
    training_nll,
    validation,
)
from cats.nmt.scoring.plots.style import (
    HIDDEN,
    INK,
    TEXT,
    begin_at_zero,
    label_ends,
    method_style,
    new_figure,
    short_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {"nll": "validation NLL, nats", "bleu": "validation BLEU", "chrf": "validation chrF"}
_MARKS = 4  # on each line
_START = 0.1  # the share of the updates whose high losses may leave the picture

CurveOf = Callable[[PlottedRun, Sequence[str]], Curve]  # of a group's tasks: the mean over them


def losses(runs: Runs) -> Figure:
    """Training loss (running mean) above validation loss, a column for each group: Figure 5 of the CATS paper.

    Raises:
        NothingToDraw: no run has a loss.
    """
    rows: dict[str, CurveOf] = {"training NLL, nats": _training, "validation NLL, nats": _validation_of("nll")}
    panels = runs.panels
    figure, axes = new_figure(2 * len(panels), rows=2, sharex=True, labels=len(runs.methods))
    for row, (title, curve) in enumerate(rows.items()):
        for axis, (group, tasks) in zip(axes[row * len(panels) :], panels.items(), strict=False):
            draw_methods(axis, runs, tasks, curve)
            axis.set_title(group if row == 0 else "", loc="left", color=INK)
            if row == 1:  # both rows have the same scale
                _set_scale(axis, UPDATES)
            _leave_out_the_start(axis)
        axes[row * len(panels)].set_ylabel(title)
    return finished(figure, axes, len(panels), "no run has losses yet")


def scores(runs: Runs, measure: str) -> Figure:
    """A validation score over the updates and over the target tokens, a row for each group: Figure 6 of the CATS paper.

    Args:
        measure: nll, bleu or chrf.

    Raises:
        NothingToDraw: no run has this score in its metrics.
    """
    panels = runs.panels
    curve = _validation_of(measure)
    counted = any(seen(run.records, run.tasks, TOKENS.what) for run in runs.runs)  # not by older versions
    scales = (UPDATES, TOKENS) if counted else (UPDATES,)
    columns = len(scales)
    figure, axes = new_figure(columns * len(panels), rows=len(panels), sharey="row", labels=len(runs.methods))
    for row, (group, tasks) in enumerate(panels.items()):
        for axis, scale in zip(axes[columns * row :], scales, strict=False):
            draw_methods(axis, runs, tasks, _over(scale, curve))
            _set_scale(axis, scale)
            if measure == "nll":
                _leave_out_the_start(axis)
            else:
                begin_at_zero(axis)
        axes[columns * row].set_title(group, loc="left", color=INK)
        axes[columns * row].set_ylabel(MEASURES[measure])
    lacking = f"no run has a {MEASURES[measure]} in its metrics; train with train.validate_bleu"
    return finished(figure, axes, columns, "no run has a validation yet" if measure == "nll" else lacking)


def efficiency(runs: Runs) -> Figure:
    """Validation loss against the sentence pairs of the group that were seen: Order Matters, Figures 3 and 20 to 25.

    Raises:
        NothingToDraw: no run has recorded the sentence pairs, as runs of older versions.
    """
    panels = runs.panels
    curve = _validation_of("nll")
    figure, axes = new_figure(len(panels), labels=len(runs.methods))
    for axis, (group, tasks) in zip(axes, panels.items(), strict=True):
        scale = Axis(f"sentence pairs of {group} seen" if group != "All" else "sentence pairs seen", "examples")
        draw_methods(axis, runs, tasks, _over(scale, curve))
        axis.set_title(group, loc="left", color=INK)
        _set_scale(axis, scale)
        _leave_out_the_start(axis)
    axes[0].set_ylabel(MEASURES["nll"])
    return finished(figure, axes, len(panels), "no run has validations and the examples of each language")


def gap(runs: Runs) -> Figure:
    """Training minus validation NLL, at the validations: the generalisation gap, Figure 4b of the CATS paper.

    The training NLL is the running mean over the updates, with dropout.

    Raises:
        NothingToDraw: no run has both losses.
    """
    panels = runs.panels
    figure, axes = new_figure(len(panels), sharey=True, labels=len(runs.methods))
    for axis, (group, tasks) in zip(axes, panels.items(), strict=True):
        draw_methods(axis, runs, tasks, _gap)
        axis.axhline(0, color=INK, linewidth=0.9, linestyle=":", zorder=1)
        axis.set_title(group, loc="left", color=INK)
        _set_scale(axis, UPDATES)
    axes[0].set_ylabel("training minus validation NLL, nats")
    return finished(figure, axes, len(panels), "no run has a validation yet")


def forgetting(runs: Runs) -> Figure:
    """Validation loss of the tasks that `train.pretrain` trains first, and of the others: Order Matters, Figure 6.

    A dotted line marks the update from which the others are trained, too.

    Raises:
        NothingToDraw: no run trains some tasks first, or none has a validation.
    """
    first = first_tasks(runs)
    panels = {"trained first": first, "the others": [task for task in runs.tasks if task not in first]}
    panels = {title: tasks for title, tasks in panels.items() if tasks}
    curve = _validation_of("nll")
    figure, axes = new_figure(len(panels), labels=len(runs.methods))
    for axis, (title, tasks) in zip(axes, panels.items(), strict=True):
        draw_methods(axis, runs, tasks, curve)
        axis.set_title(title, loc="left", color=INK)
        _set_scale(axis, UPDATES)
        _leave_out_the_start(axis)
        for step in {run.config.train.pretrain_steps for run in runs.runs if run.config.train.pretrain}:
            axis.axvline(step, color=INK, linewidth=0.9, linestyle=":", zorder=1)
    axes[0].set_ylabel(MEASURES["nll"])
    return finished(figure, axes, len(panels), "no run has a validation yet")


def _training(run: PlottedRun, tasks: Sequence[str]) -> Curve:
    return mean(training_nll(run.records, task) for task in tasks)


def _validation_of(measure: str) -> CurveOf:
    return lambda run, tasks: mean((validation(run.records, task, measure) for task in tasks), common=True)


def _gap(run: PlottedRun, tasks: Sequence[str]) -> Curve:
    return difference(_training(run, tasks), _validation_of("nll")(run, tasks))


def _over(scale: Axis, curve: CurveOf) -> CurveOf:
    """The same over what an axis counts: tokens of all tasks, or sentence pairs of the tasks of the curve."""

    def over(run: PlottedRun, tasks: Sequence[str]) -> Curve:
        counted = tasks if scale.what == "examples" else [*run.tasks]
        return against(curve(run, tasks), seen(run.records, counted, scale.what))

    return over if scale.what else curve


def draw_methods(axis: Axes, runs: Runs, tasks: Sequence[str], curve: CurveOf) -> None:
    """Draws the runs as thin lines, and the mean of each method as a bold one with marks and the method's name."""
    for number, (method, seeds) in enumerate(runs.methods.items()):
        style = method_style(method)
        curves = [(run.config.train.seed, found) for run in seeds if (found := curve(run, tasks))]
        for seed, found in curves if len(curves) > 1 else ():
            axis.plot(
                *zip(*found, strict=True),
                linestyle=style.dash,
                color=style.colour,
                linewidth=0.7,
                alpha=0.4,
                label=f"{HIDDEN}{method}, seed {seed}",
            )
        if curves:
            means = mean_of_seeds(found for _, found in curves)
            every = max(1, len(means) // _MARKS)
            # Methods have their marks at different places, so that none covers those of another one.
            marks = {**style.mark, "markevery": ((2 * number + 1) * every // (2 * len(runs.methods)), every)}
            axis.plot(
                *zip(*means, strict=True), linestyle=style.dash, color=style.colour, linewidth=2, label=method, **marks
            )


def _set_scale(axis: Axes, scale: Axis) -> None:
    """The label of the horizontal axis, and readable large numbers."""
    axis.set_xlabel(scale.title)
    short_numbers(axis)


def _leave_out_the_start(axis: Axes) -> None:
    """Ends the vertical axis at the highest loss after the first tenth, so that late differences are visible."""
    lines = [line.get_xydata().tolist() for line in axis.get_lines()]  # type: ignore[union-attr]
    end = max((points[-1][0] for points in lines if points), default=0.0)
    late = [y for points in lines for x, y in points if x >= _START * end]
    if late:
        low, high = min(late), max(late)
        margin = 0.05 * (high - low or 1)
        axis.set_ylim(low - margin, high + margin)


def finished(figure: Figure, axes: Sequence[Axes], columns: int, lacking: str) -> Figure:
    """The figure with names at the right, and a note on the seeds. Raises an error if no line was drawn."""
    names = {str(line.get_label()) for axis in axes for line in axis.get_lines()}
    if all(name.startswith("_") for name in names):
        raise NothingToDraw(lacking)
    label_ends(*axes[columns - 1 :: columns])
    if any(name.startswith(HIDDEN) for name in names):
        figure.supxlabel("thin lines: seeds; bold: their mean", fontsize=TEXT - 1, color=INK)
    return figure
