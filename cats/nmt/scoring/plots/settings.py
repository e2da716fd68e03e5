"""Results of several runs against one of their settings: model size, batch size, length of pre-training, .."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cats.nmt.config.checks import format_value
from cats.nmt.config.schema import value_of
from cats.nmt.scoring.plots.runs import NothingToDraw, PlottedRun, Runs, first_tasks
from cats.nmt.scoring.plots.series import validation, validation_scores
from cats.nmt.scoring.plots.style import HIDDEN, INK, label_ends, method_style, new_figure
from cats.nmt.training.metrics import best_validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {
    "nll": "validation NLL of the best model, nats",
    "bleu": "test BLEU",
    "chrf": "test chrF",
    "forgetting": "last minus lowest validation NLL, nats",
}
_WIDE = 4  # values that differ by at least this factor get a logarithmic axis


def against(runs: Runs, key: str, measure: str) -> Figure:
    """A result against a setting, a panel for each group: the mean over the seeds, and ± the standard deviation.

    With model.d_model it is Figure 7 of the CATS paper, with sampling.batch_tokens Figure 8; with train.pretrain_steps
    Figure 9 of Order Matters.

    Args:
        runs: read with the same setting, see ``read_runs``.
        key: the setting, "section.key".
        measure: one of MEASURES. forgetting is of the tasks that `train.pretrain` trains first only.

    Raises:
        NothingToDraw: no run has this result.
    """
    panels = {"trained first": first_tasks(runs)} if measure == "forgetting" else runs.panels
    values = sorted({_sortable(value_of(run.config, key)) for run in runs.runs})
    numeric = all(isinstance(value, int | float) for _, value in values)
    place = {value: value if numeric else i for i, (_, value) in enumerate(values)}
    figure, axes = new_figure(len(panels), labels=len(runs.methods))
    drawn = False
    for axis, (title, tasks) in zip(axes, panels.items(), strict=True):
        for method, seeds in runs.methods.items():
            found: dict[Any, list[tuple[int, float]]] = {}
            for run in seeds:
                result = _result(run, tasks, measure)
                if result is not None:
                    where = place[_sortable(value_of(run.config, key))[1]]
                    found.setdefault(where, []).append((run.config.train.seed, result))
            if found:
                drawn = True
                _draw(axis, method, found)
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel(key)
        _set_ticks(axis, {x: _shown(value) for value, x in place.items()}, numeric)
    if not drawn:
        raise NothingToDraw(_LACKING[measure])
    axes[0].set_ylim(bottom=max(0.0, axes[0].get_ylim()[0]))
    axes[0].set_ylabel(MEASURES[measure])
    label_ends(axes[-1])
    return figure


_LACKING = {
    "nll": "no run has a validation yet",
    "bleu": "no run is evaluated with BLEU; see cats evaluate",
    "chrf": "no run is evaluated with chrF; see cats evaluate",
    "forgetting": "no run has a validation yet",
}


def _draw(axis: Axes, method: str, found: dict[Any, list[tuple[int, float]]]) -> None:
    """One method: a dot for each seed, and a line through the means. found: {value: (seed, result) of its runs}."""
    style = method_style(method)
    xs = sorted(found)
    results = [[result for _, result in found[x]] for x in xs]
    means = [float(np.mean(each)) for each in results]
    for x, each in zip(xs, results, strict=True):
        for seed, result in found[x] if len(each) > 1 else ():
            axis.plot([x], [result], ".", color=style.colour, alpha=0.4, label=f"{HIDDEN}{method}, seed {seed}")
    spread = [float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in results]
    axis.errorbar(xs, means, yerr=spread, fmt="none", ecolor=style.colour, elinewidth=1, capsize=3, label="_")
    axis.plot(xs, means, linestyle=style.dash, color=style.colour, linewidth=1.6, label=method, **style.mark)


def _result(run: PlottedRun, tasks: Sequence[str], measure: str) -> float | None:
    """The mean over the tasks. None: the run has not recorded it for all of them."""
    if measure in ("bleu", "chrf"):
        cells = {} if run.scores is None else run.scores.model.tasks
        values = [cells[task].get(measure) if task in cells else None for task in tasks]
    elif measure == "forgetting":
        curves = [[nll for _, nll in validation(run.records, task, "nll")] for task in tasks]
        values = [curve[-1] - min(curve) if curve else None for curve in curves]
    else:
        lines = [line for line in run.records if validation_scores(line, "nll")]
        best = best_validation(lines) or (lines[-1] if lines else {})
        values = [validation_scores(best, "nll").get(task) for task in tasks]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _set_ticks(axis: Axes, labels: dict[Any, str], numeric: bool) -> None:
    """A tick at each value of the setting. Numbers of very different size are on a logarithmic scale."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    xs = sorted(labels)
    if numeric and xs[0] > 0 and xs[-1] >= _WIDE * xs[0]:
        axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(xs))
    axis.xaxis.set_major_formatter(FixedFormatter([labels[x] for x in xs]))
    axis.xaxis.set_minor_locator(NullLocator())


def _sortable(value: Any) -> tuple[str, Any]:
    """A value with what orders it among values of any type. Numbers are compared as numbers, all others as text."""
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return "", value
    return format_value(value), _shown(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else format_value(value)
