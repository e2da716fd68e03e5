"""What is wrong with a run, or looks wrong: what a reader must know before believing its scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import cats
from cats.nmt.scoring import hypotheses
from cats.nmt.scoring.pareto.results import Front, LostPoint, Point
from cats.nmt.scoring.report.runs import Content, ReportedRun
from cats.nmt.scoring.scores import TITLES
from cats.nmt.training.metrics import divergence

# As in cats/weighting/simplex.py: a weight below this many times its floor counts as at its floor, and so does one
# below this share of its prior.
_NEAR_FLOOR, _TINY = 1.2, 1e-3
_LAST = 0.25  # the part of the training, at its end, in which a weight must be at its floor for a warning
_OFF_TARGET = 0.1  # more off-target lines than references that are taken for another language, as a share of the lines
_EMPTY = 0.05  # share of empty translations
# What can be wrong, the worst first.
KINDS = (
    *("diverged", "not finished", "not trained", "empty translations", "off-target", "weight at its floor"),
    *("updates skipped", "not scored", "not readable"),
)
# The first two fields of problems.
DIVERGED = ("diverged", "Lower train.lr; with other settings a run needs another --out.")
MISSING = ("not finished", "Start cats pareto again with the same options.")
NOT_TRAINED = (
    "not trained",
    "A group is not better than the nearest-neighbour baseline, the translation of the nearest training sentence. "
    "Train longer, or on more text, before you compare methods.",
)
NOT_SCORED = ("not scored", "Runs without scores are not on this page; score them with cats evaluate.")
NOT_READ = ("not readable", "These runs are not on this page.")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        what: one of KINDS.
        meaning: what follows from it, and what to do: the same for every run.
        facts: what it is in this run, with numbers.
    """

    what: str
    meaning: str
    facts: str


def all_problems(content: Content) -> Iterator[tuple[str, Problem]]:
    """What is wrong with everything that a page is about, each problem with the name of what has it.

    Raises:
        UserError: a file of translations is not the one that was scored.
    """
    for run in content.runs:
        for problem in problems(run):
            yield run.name, problem
    for each in content.comparisons:
        folder = f"{each.name}/" if len(content.comparisons) > 1 else ""
        for name, result in each.comparison.sets.items():
            for method, scores in result.methods.items():
                if scores.untrained:
                    facts = f"seed {', '.join(map(str, scores.untrained))}"
                    yield f"{folder}{name}/{method}", Problem(*NOT_TRAINED, facts)
    for fronts in content.fronts:
        folder = f"{fronts.name}/" if len(content.fronts) > 1 else ""
        for front in fronts.fronts.fronts:
            yield from _without_score(front, folder)
    if content.not_read:
        yield f"{len(content.not_read)} runs", Problem(*NOT_READ, "; ".join(content.not_read))
    if content.not_scored:
        yield f"{len(content.not_scored)} runs", Problem(*NOT_SCORED, ", ".join(map(str, content.not_scored)))


def _without_score(front: Front, folder: str) -> Iterator[tuple[str, Problem]]:
    """The methods of a front with seeds that have no score. `folder` is what their names begin with."""
    points: list[tuple[str, Point | LostPoint]] = [
        *((method, point) for method, found in front.methods.items() for point in found.points),
        *((lost.method, lost) for lost in front.lost),
    ]
    for method in dict.fromkeys(method for method, _ in points):
        own = [point for name, point in points if name == method]
        for kind, at_points in ((DIVERGED, [p.diverged for p in own]), (MISSING, [p.missing for p in own])):
            facts = [
                ("" if point.ratio is None else f"ratio {point.ratio:g}: ") + f"seed {', '.join(map(str, seeds))}"
                for point, seeds in zip(own, at_points, strict=True)
                if seeds
            ]
            if facts:
                name = f"{folder}{front.set}/{front.low.name}-{front.high.name}/{method}"
                yield name, Problem(*kind, "; ".join(facts))


def problems(run: ReportedRun) -> list[Problem]:
    """What is wrong with a run; empty if nothing is.

    Raises:
        UserError: a file of translations is not the one that was scored.
    """
    return [*_training(run), *_baseline(run), *_collapsed(run), *_off_target(run), *_empty(run)]


def _training(run: ReportedRun) -> Iterator[Problem]:
    if diverged := divergence(run.records):
        yield Problem(*DIVERGED, diverged)
    steps, planned = run.scores.run.steps, run.config.train.steps
    exported = run.directory.is_exported  # it does not say how long it was trained, and cannot be continued
    if steps < planned and not run.config.train.patience and not diverged and not exported:
        text = f"scored after {steps:,} of {planned:,} updates"
        yield Problem("not finished", "Continue with cats train --resume.", text)
    if skipped := max((record.get("skipped") or 0 for record in run.records), default=0):
        text = f"{skipped:,} of {steps:,} updates"
        yield Problem("updates skipped", "Their gradients were not finite. Lower train.lr.", text)


def _baseline(run: ReportedRun) -> Iterator[Problem]:
    ours, theirs = run.scores.model.groups, run.scores.nearest_neighbour.groups
    below = [
        f"{TITLES[group]} (chrF {ours[group].quality.chrf:.1f} against {theirs[group].quality.chrf:.1f})"
        for group, gain in run.scores.gains.items()
        if gain is not None and gain <= 0
    ]
    if below:
        yield Problem(*NOT_TRAINED, ", ".join(below))


def _collapsed(run: ReportedRun) -> Iterator[Problem]:
    """Tasks whose weight was at its floor at the end of the training."""
    lines = [record for record in run.records if record.get("alpha")]
    last = lines[-max(1, round(_LAST * len(lines))) :]
    floor = _floor(run)
    low = [task for task in (lines[-1]["alpha"] if lines else {}) if all(_is_low(line, task, floor) for line in last)]
    if low:
        text = (
            f"The weight α of a language was at its lower bound in the last {_LAST:.0%} of the training, so that it "
            "was hardly trained. With method cats, raise method.floor or lower method.strength."
        )
        yield Problem("weight at its floor", text, ", ".join(low))


def _floor(run: ReportedRun) -> float:
    """The lower bound of α, as a share of its prior."""
    method = run.config.method
    if method.name != "cats":
        return 0.0
    if not isinstance(method.floor, str):
        return method.floor
    return cats.weighting.CATS(simplex=cast(Any, method.simplex)).floor  # the default of this form


def _is_low(line: dict[str, Any], task: str, floor: float) -> bool:
    """Whether α of a task is at its lower bound."""
    alpha = {name: value or 0.0 for name, value in line["alpha"].items()}
    total = sum(alpha.values())
    share = (line.get("prior") or {}).get(task, 1 / len(alpha))
    return bool(total > 0 and task in alpha and alpha[task] / total < max(_NEAR_FLOOR * floor, _TINY) * share)


def _off_target(run: ReportedRun) -> Iterator[Problem]:
    found = []
    for task, cell in {**run.scores.model.tasks, **run.scores.zero_shot}.items():
        if cell.off_target is not None and cell.off_target.share is not None:
            by_mistake = cell.off_target.references or 0.0
            if cell.off_target.share - by_mistake > _OFF_TARGET:
                found.append(f"{task} {cell.off_target.share:.0%} ({by_mistake:.0%})")
    if found:
        text = (
            "Many translations look like another language than the target language. The share of the references for "
            "which this is so, in brackets, is the error of the identification."
        )
        yield Problem("off-target", text, ", ".join(found))


def _empty(run: ReportedRun) -> Iterator[Problem]:
    found = []
    for task in run.scores.scored_tasks:
        lines = hypotheses.read(run.path, run.scores, task, "txt")
        count = sum(not line.strip() for line in lines)
        if count > _EMPTY * len(lines):
            found.append(f"{task} {count:,} of {len(lines):,}")
    if found:
        yield Problem("empty translations", "Some lines have no translation.", ", ".join(found))
