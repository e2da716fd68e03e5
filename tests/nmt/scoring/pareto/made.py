"""Runs of `cats pareto` that were never trained: the files that they would leave behind, with given scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cats.nmt.cli import pareto
from cats.nmt.cli.parser import Parser
from cats.nmt.config.toml import to_toml
from cats.nmt.scoring.grid.runs import Run
from cats.nmt.scoring.pareto.plan import PlannedFront, PlannedPoint
from cats.nmt.scoring.pareto.results import Estimate, Front, Fronts, MethodFront, Point, Side
from tests.nmt.scoring.samples import cell, content

# The low and the high side's score of a method at a ratio (None: its own mixture) with a seed. None: it diverged.
Score = Callable[[str, float | None, int], tuple[float, float] | None]


def planned(*words: str) -> list[PlannedFront]:
    """The fronts that `cats pareto` makes of these options."""
    parser = Parser("cats pareto", "")
    pareto.add_arguments(parser)
    return pareto.planned(parser.parse(words))


def finish_all(fronts: list[PlannedFront], score: Score) -> None:
    for front in fronts:
        for point in front.points:
            for run in point.runs:
                _finish(run, point, score)


def _finish(run: Run, point: PlannedPoint, score: Score) -> None:
    """Leave in the run directory what a trained and scored run leaves there, as far as the fronts read it."""
    run.path.mkdir(parents=True)
    (run.path / "config.toml").write_text(to_toml(run.config), encoding="utf-8")
    found = score(point.method, point.ratio, run.seed)
    names = {"lores": list(run.config.evaluate.lores), "hires": list(run.config.evaluate.hires)}
    values = dict(zip(names, found or (0.0, 0.0), strict=True))
    nll = {task: values[side] for side, tasks in names.items() for task in tasks}
    worse = {task: value + 1 for task, value in nll.items()}
    lines: list[dict[str, object]] = [
        {"step": 5, "valid": {"nll": worse, "all": 2.0}, "best": True},
        {"step": 10, "valid": {"nll": nll, "all": 1.0}, "best": True},
        {"step": 15, "valid": {"nll": worse, "all": 2.0}},
    ]
    if not found:
        lines.append({"step": 16, "diverged": "training diverged at update 16"})
    run.directory.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    tasks = {task: cell(values[side], 1.0, pairs=1) for side, own in names.items() for task in own}
    groups = {side: cell(values[side], 1.0, languages=own) for side, own in names.items()}
    both = {"all": cell(1.0, languages=list(tasks)), **groups}
    split = "valid" if run.config.evaluate.search == "none" else "test"
    if found:
        made = content(languages=tasks, groups=both, lookup={"languages": {}, "groups": groups}, split=split)
        run.directory.scores_file(split).write_text(json.dumps(made), encoding="utf-8")


def planned_front(corpus: Path, out: Path, *words: str) -> PlannedFront:
    """A plan between xb and xa with two seeds and three ratios."""
    options = ["--data", str(corpus), "--out", str(out), "--between", "xb", "xa", "--seeds", "1", "2"]
    (front,) = planned(*options, "--ratios", "0.2", "0.5", "0.8", "--methods", "restart", "pretrain", "T=3", *words)
    return front


def on_a_front(corpus: Path, out: Path, *words: str) -> list[PlannedFront]:
    """Finished runs with two seeds: restart is on the front of static ratios, pretrain-finetune beyond, T=3 behind."""
    fronts = [planned_front(corpus, out, *words)]

    def score(method: str, ratio: float | None, seed: int) -> tuple[float, float]:
        share = {"restart": 0.4 if ratio == 0.5 else ratio}.get(method, ratio) or 0.5
        low, high = 1 + 0.2 * share**-0.5, 1 + 0.1 * (1 - share) ** -0.5
        better = {"pretrain-finetune": -0.1, "T=3": 0.05}.get(method, 0.0)
        noise = 0.002 * seed * (1 if ratio == 0.5 else -1)
        return low + better + noise, high + better - noise / 2

    finish_all(fronts, score)
    return fronts


def made_fronts(metric: str = "nll", count: int = 1) -> Fronts:
    """Two static ratios, restart over both, and one point of T=3."""

    def point(ratio: float | None, low: float, high: float) -> Point:
        return Point(ratio, [1, 2], [low, low + 0.02], [high, high + 0.02], margin=Estimate(0.1, 0.0, 0.2))

    methods = {
        "static": MethodFront([point(0.2, 2.0, 1.0), point(0.8, 1.0, 2.0)], 1.0),
        "restart": MethodFront([point(0.2, 2.1, 1.0), point(0.8, 1.2, 2.0)], 0.9, Estimate(-0.1), False),
        "T=3": MethodFront([point(None, 1.4, 1.4)], 0.5, None, True),
    }
    low, high = Side("az", ["az"]), Side("hires", ["tr", "ru"])
    curve = [(2.0, 1.0), (1.3, 1.3), (1.0, 2.0)]
    return Fronts(metric, [1, 2], "", [Front("ted", low, high, (2.2, 2.2), methods, curve)] * count)
