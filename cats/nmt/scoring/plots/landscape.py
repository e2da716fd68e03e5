"""The loss landscape of runs: curvature and alignment over the updates, similarity of the languages' gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cats.nmt.scoring.landscape_tables import nan_mean
from cats.nmt.scoring.plots.methods import draw_methods, finished
from cats.nmt.scoring.plots.runs import NothingToDraw, PlottedRun, Runs
from cats.nmt.scoring.plots.series import Curve
from cats.nmt.scoring.plots.style import INK, TEXT, WIDTH, label_ends, method_style, new_figure, short_numbers, text_on
from cats.nmt.training.landscape import ALL, LandscapeRecord, read_landscape
from cats.nmt.training.run import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LACKING = "no run has a landscape.jsonl; make it with cats analyse RUN, or train with train.analyse_every"
_KINDS = ("E.SA", "E.FC", "E.LN", "D.SA", "D.EA", "D.FC", "D.LN", "Emb", "CLSR")  # in this order in pictures
_MOST_NUMBERS = 10  # languages in a matrix with numbers in its cells
_MOST_NAMES = 24  # with their names beside it

Matrices = dict[str, np.ndarray]  # {method: (K, K)}


def curvature(runs: Runs) -> Figure:
    """Largest Hessian eigenvalue of each group's languages, and below it how well their gradients agree with others'.

    Figure 2 of the CATS paper. Both are means over the languages; the second is over the pairs with another language.
    The eigenvalue is the most positive one, the sharpness: those of largest size have either sign, so that their mean
    over the languages could be near 0 at a sharp place.

    Raises:
        NothingToDraw: no run was analysed.
    """
    records = {run.path: _trajectory(run) for run in runs.runs}

    def curve_of(value: Callable[[LandscapeRecord, str], float]) -> Callable[[PlottedRun, Sequence[str]], Curve]:
        def curve(run: PlottedRun, tasks: Sequence[str]) -> Curve:
            means = [
                (record.step, nan_mean([value(record, task) for task in tasks if task in record.tasks]))
                for record in records[run.path]
            ]
            return [(step, mean) for step, mean in means if not np.isnan(mean)]

        return curve

    rows = {
        "largest Hessian eigenvalue": curve_of(lambda record, task: record.largest[task]),
        "cosine with other gradients": curve_of(_agreement),
    }
    measured = {task for found in records.values() for record in found for task in record.tasks}
    panels = {title: tasks for title, tasks in runs.panels.items() if not measured.isdisjoint(tasks)}
    if not panels:
        raise NothingToDraw(_LACKING)
    figure, axes = new_figure(2 * len(panels), rows=2, sharey="row")
    for row, (title, curve) in enumerate(rows.items()):
        for axis, (group, tasks) in zip(axes[row * len(panels) :], panels.items(), strict=False):
            draw_methods(axis, runs, tasks, curve)
            axis.set_title(group if row == 0 else "", loc="left", color=INK)
            axis.set_xlabel("update")
            short_numbers(axis)
            if row == 1:
                axis.axhline(0, color=INK, linewidth=0.9, linestyle=":", zorder=1)
        axes[row * len(panels)].set_ylabel(title)
    return finished(figure, axes, len(panels), _LACKING)


def similarity(runs: Runs) -> Figure:
    """The similarity of the gradients of each two languages at the last measurement: Figures 3, 4a of the CATS paper.

    A row for each method, the mean over its seeds: at the left the cosine, at the right the magnitude similarity.
    The languages with the fewest training pairs come first.

    Raises:
        NothingToDraw: no run was analysed, or none with two languages.
    """
    last = _last(runs)
    tasks = [task for task in runs.tasks if all(task in each.tasks for found in last.values() for each in found)]
    if len(tasks) < 2:
        raise NothingToDraw(f"the runs were not analysed with two languages in common; {_LACKING}")
    cosines, magnitudes = (
        {method: _mean_matrix(found, tasks, what) for method, found in last.items()} for what in ("cosine", "magnitude")
    )
    side = WIDTH / 2 - 0.4
    figure, axes = new_figure(2 * len(last), rows=len(last), height=(side + 0.7) * len(last))
    # The colours of a picture are the same for all methods. 0 is white: there the gradients are orthogonal.
    largest = max(0.01, *(float(np.nan_to_num(np.abs(matrix)).max()) for matrix in cosines.values()))
    for row, method in enumerate(last):
        left, right = axes[2 * row : 2 * row + 2]
        _draw_matrix(left, cosines[method], tasks, "PuOr_r", -largest, largest)
        _draw_matrix(right, magnitudes[method], tasks, "cividis", 0.0, 1.0)
        left.set_title(f"{method}: cosine", loc="left", color=INK)
        right.set_title(f"{method}: magnitude similarity", loc="left", color=INK)
    return figure


def layers(runs: Runs) -> Figure:
    """The similarity of gradients by kind of layer at the last measurement, means over the pairs of languages.

    At the left the cosine, at the right the magnitude similarity: Figure 3 of the CATS paper, a line for each method.

    Raises:
        NothingToDraw: no run was analysed, or none with two languages.
    """
    last = _last(runs)
    if all(len(record.tasks) < 2 for found in last.values() for record in found):
        raise NothingToDraw(f"no run was analysed with two languages; {_LACKING}")
    known = {kind for found in last.values() for record in found for kind in record.kinds}
    kinds = [kind for kind in _KINDS if kind in known]
    figure, axes = new_figure(2, height=4.4)
    for axis, what in zip(axes, ("cosine", "magnitude"), strict=True):
        for method, found in last.items():
            style = method_style(method)
            values = [
                nan_mean([_pairs(record, kind, what) for record in found if kind in record.kinds]) for kind in kinds
            ]
            axis.plot(range(len(kinds)), values, linestyle=style.dash, color=style.colour, label=method, **style.mark)
        axis.set_xticks(range(len(kinds)), kinds, fontsize=TEXT, rotation=45)
        axis.set_title({"cosine": "cosine", "magnitude": "magnitude similarity"}[what], loc="left", color=INK)
    axes[0].axhline(0, color=INK, linewidth=0.9, linestyle=":", zorder=1)
    axes[0].set_ylabel("mean over the pairs of languages")
    label_ends(axes[-1])
    return figure


def _trajectory(run: PlottedRun) -> list[LandscapeRecord]:
    """One record of each update, with the same settings and tasks: those of the most records."""
    by_settings: dict[object, dict[int, LandscapeRecord]] = {}
    for record in read_landscape(RunDirectory(run.path).landscape_file):
        by_settings.setdefault((record.settings, tuple(record.tasks)), {})[record.step] = record
    return list(max(by_settings.values(), key=len, default={}).values())


def _last(runs: Runs) -> dict[str, list[LandscapeRecord]]:
    """{method: the last record of each of its runs that has one}, without methods that have none."""
    found = {method: [r[-1] for run in seeds if (r := _trajectory(run))] for method, seeds in runs.methods.items()}
    found = {method: records for method, records in found.items() if records}
    if not found:
        raise NothingToDraw(_LACKING)
    return found


def _agreement(record: LandscapeRecord, task: str) -> float:
    """The mean cosine of a task's gradient with those of the others."""
    place = record.tasks.index(task)
    return nan_mean(np.delete(record.kinds[ALL].cosine[place], place))


def _pairs(record: LandscapeRecord, kind: str, what: str) -> float:
    """The mean over the pairs of tasks. what: cosine or magnitude."""
    matrix: np.ndarray = getattr(record.kinds[kind], what)
    return nan_mean(matrix[~np.eye(len(matrix), dtype=bool)])


def _mean_matrix(records: Sequence[LandscapeRecord], tasks: Sequence[str], what: str) -> np.ndarray:
    """(K, K) of these tasks, the mean over the records. The diagonal, which is always 1, is nan."""
    found = []
    for record in records:
        places = [record.tasks.index(task) for task in tasks]
        found.append(getattr(record.kinds[ALL], what)[np.ix_(places, places)])
    mean: np.ndarray = np.mean(found, axis=0)
    np.fill_diagonal(mean, np.nan)
    return mean


def _draw_matrix(axis: Axes, matrix: np.ndarray, tasks: Sequence[str], colours: str, low: float, high: float) -> None:
    """A matrix as colours, with numbers in the cells if they are few, else with a scale of colours."""
    axis.grid(False)
    image = axis.imshow(matrix, cmap=colours, vmin=low, vmax=high)
    places = range(len(tasks)) if len(tasks) <= _MOST_NAMES else ()
    size = TEXT if len(tasks) <= _MOST_NUMBERS else TEXT - 1
    axis.set_xticks(places, [tasks[i] for i in places], fontsize=size, rotation=90 if len(tasks) > 4 else 0)
    axis.set_yticks(places, [tasks[i] for i in places], fontsize=size)
    if not places:
        axis.set_xlabel("languages, the smallest first")
    if len(tasks) > _MOST_NUMBERS:
        axis.figure.colorbar(image, ax=axis, shrink=0.8)
        return
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            text, colour = f"{value:z.2f}".replace("0.", "."), text_on(image.to_rgba(value))
            axis.text(j, i, text, ha="center", va="center", fontsize=TEXT - 1, color=colour)
