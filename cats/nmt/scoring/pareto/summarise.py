"""Collects the fronts of `cats pareto` from the run directories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cats.nmt.config.toml import to_toml
from cats.nmt.errors import UserError
from cats.nmt.scoring.grid.runs import Run, chosen
from cats.nmt.scoring.grid.trials import as_settings, group_mean
from cats.nmt.scoring.pareto.beyond import (
    Sample,
    gain_estimate,
    margin_estimates,
    resampled_means,
    static_front,
)
from cats.nmt.scoring.pareto.front import dominated, hypervolume
from cats.nmt.scoring.pareto.plan import PlannedFront, PlannedPoint, all_runs
from cats.nmt.scoring.pareto.results import NLL, STATIC, Front, Fronts, LostPoint, MethodFront, Point, is_loss
from cats.nmt.scoring.scores import read_scores
from cats.nmt.training.metrics import best_validation, read_metrics


def summarise(fronts: Sequence[PlannedFront], metric: str) -> Fronts:
    """The fronts of the finished runs.

    Raises:
        UserError: no run is finished and has a score.
    """
    runs = all_runs(fronts)
    found = [_Front(planned, metric).result() for planned in fronts]
    if not any(front.methods for front in found):
        raise UserError(f"no run of {runs[0].path.parent} is finished and has a score: there is nothing to draw yet")
    return Fronts(metric, sorted({run.seed for run in runs}), to_toml(runs[0].config), found)


def score(run: Run, metric: str) -> tuple[float, float] | None:
    """The scores of the low and the high side of a finished run. None: it diverged, or has no such score.

    The validation NLL is that of the best checkpoint, mean over the tasks of a side. BLEU and chrF are on test text.
    """
    if run.directory.divergence():
        return None
    if metric == NLL:
        best = best_validation(read_metrics(run.directory.metrics_file))
        sides = (run.config.evaluate.lores, run.config.evaluate.hires)
        values = [group_mean([best["valid"]["nll"].get(task) for task in side]) for side in sides] if best else []
    else:
        groups = read_scores(run.path).model.groups
        values = [value for side in ("lores", "hires") if (value := groups[side].get(metric)) is not None]
    return (values[0], values[1]) if len(values) == 2 and all(map(math.isfinite, values)) else None


class _Front:
    """The points of one front that have scores.

    Attributes:
        sign: what makes a loss of a score.
        samples: the losses of each point.
        lost: the points that have none.
    """

    def __init__(self, planned: PlannedFront, metric: str) -> None:
        self.planned, self.sign = planned, 1 if is_loss(metric) else -1
        self.points: list[Point] = []
        self.methods: list[str] = []  # of each point
        self.lost: list[LostPoint] = []
        for each in planned.points:
            point = _point(each, metric)
            if point.seeds:
                self.points.append(point)
                self.methods.append(each.method)
            else:
                self.lost.append(LostPoint(each.method, each.ratio, point.missing, point.diverged))
        self.samples = [Sample(point.seeds, self.sign * np.array([point.low, point.high]).T) for point in self.points]

    def result(self) -> Front:
        names = list(dict.fromkeys(each.method for each in self.planned.points))
        not_run = [name for name in names if name not in self.methods]
        if not self.points:
            return Front(self.planned.set, self.planned.low, self.planned.high, (0.0, 0.0), {}, [], not_run, self.lost)
        means = np.array([each.losses.mean(0) for each in self.samples])
        worst, best = means.max(0), means.min(0)
        reference = worst + (worst - best) / 10
        index = {name: [i for i, own in enumerate(self.methods) if own == name] for name in names}
        static = index.get(STATIC, [])
        ratios = [ratio for i in static if (ratio := self.points[i].ratio) is not None]
        resampled = resampled_means(self.samples)
        methods = {}
        for name, own in index.items():
            if own:
                several = all(len(self.samples[i].seeds) > 1 for i in [*static, *own])
                again = (resampled[:, static], resampled[:, own]) if several else None
                methods[name] = self._method(name, own, means, ratios, static, again, reference)
        curve = static_front(ratios, means[static]) * self.sign if static else np.zeros((0, 2))
        low, high = (self.sign * reference).tolist()
        return Front(
            self.planned.set,
            self.planned.low,
            self.planned.high,
            (low, high),
            methods,
            [(x, y) for x, y in curve.tolist()],
            not_run,
            self.lost,
        )

    def _method(
        self,
        name: str,
        own: Sequence[int],
        means: np.ndarray,
        ratios: Sequence[float],
        static: Sequence[int],
        resampled: tuple[np.ndarray, np.ndarray] | None,
        reference: np.ndarray,
    ) -> MethodFront:
        """The front of a method whose points are those with the numbers in `own`."""
        area = hypervolume(means[own], reference.tolist())
        compared = bool(static) and name != STATIC
        estimates = margin_estimates(ratios, means[static], means[own], resampled) if compared else [None] * len(own)
        points = [
            replace(
                self.points[i],
                dominated_by=[self._label(j) for j in range(len(means)) if dominated(means[[i]], means[[j]])[0]],
                margin=estimate,
                outside=compared and bool((means[i] < means[static].min(0)).any()),
            )
            for i, estimate in zip(own, estimates, strict=True)
        ]
        beyond = None
        if compared and resampled is not None:
            beyond = any(each.low is not None and each.low > 0 for each in estimates if each is not None)
        gain = None
        if compared and {self.points[i].ratio for i in own} == {*ratios}:  # more points would dominate more
            gain = gain_estimate(means[static], means[own], resampled, reference.tolist())
        return MethodFront(points, area, gain, beyond)

    def _label(self, i: int) -> str:
        ratio = self.points[i].ratio
        return self.methods[i] if ratio is None else f"{self.methods[i]} {ratio:g}"


def _point(planned: PlannedPoint, metric: str) -> Point:
    finished = [run for run in planned.runs if run.finished]
    found = {run.seed: value for run in finished if (value := score(run, metric)) is not None}
    trials = planned.runs[0].trials
    tuned = bool(trials) and all(trial.run.finished for trial in trials)
    return Point(
        ratio=planned.ratio,
        seeds=list(found),
        low=[low for low, _ in found.values()],
        high=[high for _, high in found.values()],
        missing=[run.seed for run in planned.runs if not run.finished],
        diverged=[run.seed for run in finished if run.seed not in found],
        chosen=dict(as_settings(chosen(trials).settings)) if found and tuned else {},
    )
