"""The printed tables, and what the benchmark concludes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.common.results import Provenance
from bench.common.tables import table
from bench.common.targets import TargetResult, judge, targets_table

from .methods import REFERENCE
from .problems import problems
from .records import Training, WeightingResults

# The 97.5 % quantile of Student's t distribution with 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS = len(STUDENT) + 1
LEAST_ERROR = 1e-4  # smaller errors count as this, so that ratios exist

CATS = "proximal"  # the method that the targets are for
NO_HARM = 1.7  # error relative to equal weights, on any problem
GAIN = 1 / 3  # the same where one task is noisy


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over seeds of an error relative to that of equal weights, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[Training], reference: Sequence[Training]) -> Ratio | None:
    """Compares the worst tasks, seed by seed. None if a training failed. The logarithms are taken as normal."""
    if any(t.failure for t in (*ours, *reference)):
        return None
    pairs = zip(ours, reference, strict=True)
    logs = [math.log(max(a.worst, LEAST_ERROR) / max(b.worst, LEAST_ERROR)) for a, b in pairs]
    mean = statistics.fmean(logs)
    half = STUDENT[len(logs) - 2] * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(*(math.exp(value) for value in (mean, mean - half, mean + half)))


class Grid:
    """The trainings by problem and method, in the order of the seeds."""

    def __init__(self, results: WeightingResults) -> None:
        self.cells: dict[tuple[str, str], list[Training]] = {}
        for t in sorted(results.trainings, key=lambda t: t.seed):
            self.cells.setdefault((t.problem, t.method), []).append(t)
        self.problems = list(dict.fromkeys(t.problem for t in results.trainings))
        self.methods = list(dict.fromkeys(t.method for t in results.trainings))

    def ratio(self, problem: str, method: str) -> Ratio | None:
        return ratio(self.cells[problem, method], self.cells[problem, REFERENCE])

    def error(self, problem: str, method: str) -> str:
        cell = self.cells[problem, method]
        failed = sum(t.failure is not None for t in cell)
        if failed:
            return f"failed ({failed} of {len(cell)})"
        worst = [t.worst for t in cell]
        return f"{statistics.fmean(worst):.3g} ± {statistics.stdev(worst):.2g}"

    def least_alpha(self, problem: str, method: str) -> str:
        least = [min(t.alpha) for t in self.cells[problem, method] if not t.failure]
        return f"{statistics.fmean(least):.2g}" if least else "–"


def markdown(source: Provenance, results: WeightingResults) -> str:
    """All tables of `python -m bench.tasks`."""
    grid = Grid(results)
    others = [m for m in grid.methods if m != REFERENCE]
    seeds = len({t.seed for t in results.trainings})
    lines = [source.heading("cpu"), ""]
    lines += [f"Error of the worst task, mean ± standard deviation over {seeds} seeds:", ""]
    lines += table(("problem", *grid.methods), [(p, *(grid.error(p, m) for m in grid.methods)) for p in grid.problems])
    lines += ["", "The same relative to equal weights, geometric mean and 95 % interval:", ""]
    lines += table(("problem", *others), [(p, *(grid.ratio(p, m) or "failed" for m in others)) for p in grid.problems])
    lines += ["", "The smallest weight at the end as a share of all weights, mean over seeds:", ""]
    lines += table(
        ("problem", *grid.methods), [(p, *(grid.least_alpha(p, m) for m in grid.methods)) for p in grid.problems]
    )
    lines += ["", *targets_table(targets(grid), of="method")]
    for method in (m for m in others if m.startswith(CATS)):
        worse = [f"{p}: {r}" for p in grid.problems if (r := grid.ratio(p, method)) is not None and r.low > 1]
        lines += ["", f"{method} is worse than equal weights beyond noise on:", ""]
        lines += [f"- {line}" for line in worse] or ["- none"]
    return "\n".join(lines) + "\n"


def targets(grid: Grid) -> list[TargetResult]:
    """What CATS with its defaults should reach, where it was measured."""
    if CATS not in grid.methods:
        return []
    known = problems()
    noisy = [p for p in grid.problems if p in known and known[p].noisy]
    found = []
    for name, bound, over in (
        ("error / that of equal weights, every problem", NO_HARM, grid.problems),
        ("error / that of equal weights, regression with a noisy task", GAIN, noisy),
    ):
        ratios = {p: r.mean if (r := grid.ratio(p, CATS)) else math.inf for p in over}
        if ratios:
            worst = max(ratios, key=lambda p: ratios[p])
            found.append(judge(name, CATS, ratios[worst], bound, True, worst))
    return found
