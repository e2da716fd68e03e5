"""Which translations a page shows: some lines of each language, the same for all runs, and the worst ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cats.nmt.data.corpus import evenly_spread
from cats.nmt.data.directions import direction
from cats.nmt.scoring import hypotheses
from cats.nmt.scoring.bootstrap import chrf, chrf_counts
from cats.nmt.scoring.report.runs import ReportedRun

# The translations, of all runs and languages together, that the worst ones are sought among: more would take minutes.
_SEARCHED = 50_000
_LONGEST = 600  # characters of a line that are shown


@dataclass(frozen=True)
class Sample:
    """One test line.

    Attributes:
        number: of the line, from 1.
        translations: {name of the run: its translation}.
        chrf: {name of the run: chrF of its translation, 0 to 100}.
        worst: chosen because its translations are bad.
    """

    number: int
    source: str
    reference: str
    translations: Mapping[str, str]
    chrf: Mapping[str, float]
    worst: bool

    @property
    def mean_chrf(self) -> float:
        return sum(self.chrf.values()) / len(self.chrf)


@dataclass(frozen=True)
class TaskSamples:
    """The lines of one task that are shown.

    Attributes:
        source, target: the languages.
        lines: the number of test lines that they were chosen from.
        searched: the number of these lines that the worst ones are the worst of.
    """

    task: str
    source: str
    target: str
    samples: list[Sample]
    lines: int
    searched: int


def choose(runs: Sequence[ReportedRun], count: int) -> list[TaskSamples]:
    """Lines of each task that the runs have translated. Runs that were scored on other lines get samples of their own.

    Of `count` lines two thirds are evenly spread, the same whatever the runs made of them. The others have the lowest
    chrF, mean over the runs. If the results are reported on one stratum of the lines, all are of this stratum.

    Raises:
        UserError: a file of translations is missing, or is not the one that was scored.
    """
    found = []
    tasks: dict[str, float] = {task: pairs for run in runs for task, pairs in run.scores.pairs.items()}
    tasks |= {task: math.inf for run in runs for task in run.scores.zero_shot}  # at the end
    for task in sorted(tasks, key=lambda task: (tasks[task], task)):
        same: dict[tuple[str, ...], list[ReportedRun]] = {}
        for run in runs:
            if _is_translated(run, task):
                same.setdefault((run.scores.run.corpus, *_read(run, task, "src"), *_read(run, task, "ref")), []).append(
                    run
                )
        searched = _SEARCHED // (len(runs) * len(tasks))
        found += [_choose(task, group, count, max(count, searched)) for group in same.values()]
    return found


def _is_translated(run: ReportedRun, task: str) -> bool:
    cell = run.scores.model.tasks.get(task) or run.scores.zero_shot.get(task)
    return cell is not None and cell.lines > 0


def _choose(task: str, runs: Sequence[ReportedRun], count: int, searched: int) -> TaskSamples:
    first = runs[0]
    sources, references = _read(first, task, "src"), _read(first, task, "ref")
    ours = {run.name: _read(run, task, "txt") for run in runs}
    rows = list(range(len(sources)))
    if first.scores.headline and first.directory.hypotheses_file(task, "stratum").exists():  # not in older runs
        strata = _read(first, task, "stratum")
        rows = [i for i in rows if strata[i] == first.scores.headline]

    def sample(row: int, worst: bool) -> Sample:
        reference = references[row]
        texts = {name: lines[row] for name, lines in ours.items()}
        scores = {name: float(chrf(chrf_counts(text, reference))) for name, text in texts.items()}
        shown = {name: _cut(text) for name, text in texts.items()}
        return Sample(row + 1, _cut(sources[row]), _cut(reference), shown, scores, worst)

    spread = [sample(row, False) for row in evenly_spread(rows, count - count // 3)]
    candidates = [sample(row, True) for row in evenly_spread(rows, searched)]
    known, worst = {each.source for each in spread}, list[Sample]()
    for each in sorted(candidates, key=lambda each: each.mean_chrf):
        if len(worst) < count // 3 and each.source not in known:  # many lines of the built-in corpus repeat a source
            worst.append(each)
            known.add(each.source)
    source, target = _languages(task, first)
    return TaskSamples(task, source, target, spread + worst, len(rows), len(candidates))


def _languages(task: str, run: ReportedRun) -> tuple[str, str]:
    """The source and the target language of a task."""
    shared = run.config.data.source
    if run.config.data.direction == "one-to-many":
        return shared, task.removeprefix(f"{shared}-")
    if run.config.data.direction == "many-to-one":
        return task.removesuffix(f"-{shared}"), shared
    return direction(task, [name for name in run.scores.pairs if "-" not in name])


def _read(run: ReportedRun, task: str, suffix: str) -> list[str]:
    return hypotheses.read(run.path, run.scores, task, suffix)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
