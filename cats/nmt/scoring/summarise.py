"""Computes the scores of translations: per task, per group of tasks, and per stratum of test lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from cats.nmt import quality
from cats.nmt.data.corpus import Corpus, Split
from cats.nmt.quality import Quality
from cats.nmt.scoring.off_target import Identifier
from cats.nmt.scoring.scores import (
    MOST_NATS,
    Cell,
    Likelihood,
    OffTarget,
    RunFacts,
    Scores,
    Stratum,
    SystemScores,
    TaskCell,
)


@dataclass(frozen=True)
class Output:
    """What one system made of one split of a task.

    Attributes:
        language: the target language.
        split: sources and references.
        lines: the translations of some or all sources.
        nll: (lines, 2) nats and tokens of each reference. None: the system has no likelihoods.
        identifier: identifies the language of the lines for the off-target rate. None: no off-target rate.
        rows: the indices of the sources that `lines` translates. None: of all.
    """

    language: str
    split: Split
    lines: list[str]
    nll: np.ndarray | None = None
    identifier: Identifier | None = None
    rows: list[int] | None = None

    def cell(self, stratum: str | None) -> TaskCell:
        """Scores of the lines of a stratum; None: all lines."""
        rows = self.split.rows(stratum)
        translation = dict(zip(self.split.rows(None) if self.rows is None else self.rows, self.lines, strict=True))
        translated = [i for i in rows if i in translation]
        lines, references = [translation[i] for i in translated], [self.split.target[i] for i in translated]
        off_target = None
        if self.identifier is not None and (lines or not rows):
            off_target = OffTarget(
                self.identifier.off_target(lines, self.language, references),
                self.identifier.off_target(references, self.language, references),
            )
        return TaskCell(
            quality.score(lines, references, self.language) if lines else Quality(),
            None if self.nll is None else likelihood(self.nll[rows]),
            off_target,
            lines=len(lines),
        )


def likelihood(nll: np.ndarray) -> Likelihood:
    """Nats per target token over lines, given as (lines, 2) nats and tokens."""
    nats, tokens = nll.sum(0) if len(nll) else (math.nan, 1.0)
    per_token = float(nats / tokens)
    return Likelihood(per_token if per_token < MOST_NATS else None)


def summarise(
    ours: Mapping[str, Output],
    theirs: Mapping[str, Output],
    corpus: Corpus,
    members: Mapping[str, list[str]],
    *,
    zero_shot: Mapping[str, Output],
    run: RunFacts,
) -> Scores:
    """All scores of a run.

    Args:
        ours: the model's output for each task.
        theirs: the output of the nearest-neighbour baseline, for those tasks that it has translated.
        corpus: the corpus that the tasks are from.
        members: tasks of each group, see `cats.nmt.data.groups`.
        zero_shot: the model's output for directions without training text.
        run: what was scored.
    """
    strata = sorted({stratum for output in ours.values() for stratum, _ in output.split.meta or ()})
    headline = corpus.headline if corpus.headline in strata else None
    members = {group: [name for name in names if name in ours] for group, names in members.items()}
    by_stratum = {}
    if headline or len(strata) > 1:
        by_stratum = {stratum: _both_systems(ours, theirs, members, stratum) for stratum in strata}
    both = by_stratum[headline] if headline else _both_systems(ours, theirs, members, None)
    # The headline stratum is for scores of translations. The likelihood is over all lines.
    tasks = {
        name: cell if (nll := ours[name].nll) is None else replace(cell, likelihood=likelihood(nll))
        for name, cell in both.model.tasks.items()
    }
    model = SystemScores(tasks, averages(tasks, members))
    return Scores(
        model=model,
        nearest_neighbour=both.nearest_neighbour,
        pairs={name: corpus.sizes[name] for name in ours},
        members=members,
        headline=headline,
        strata=by_stratum,
        signatures=_signatures({name: output.language for name, output in {**ours, **zero_shot}.items()}),
        zero_shot={name: output.cell(None) for name, output in zero_shot.items()},
        run=run,
    )


def averages(cells: Mapping[str, TaskCell], members: Mapping[str, list[str]]) -> dict[str, Cell]:
    """Macro-averages of each group over its tasks that were scored. An average is None if a task lacks the score."""
    scored = {name for name, cell in cells.items() if cell.lines or cell.get("nll") is not None}
    return {group: _average([cells[name] for name in names if name in scored]) for group, names in members.items()}


def _average(cells: Sequence[Cell]) -> Cell:
    likelihoods = [cell.likelihood for cell in cells if cell.likelihood is not None]
    shares = [cell.off_target for cell in cells if cell.off_target is not None]
    return Cell(
        Quality(**{f.name: _mean([getattr(cell.quality, f.name) for cell in cells]) for f in fields(Quality)}),
        Likelihood(_mean([each.nll for each in likelihoods])) if len(likelihoods) == len(cells) else None,
        OffTarget(_mean([each.share for each in shares]), _mean([each.references for each in shares]))
        if len(shares) == len(cells)
        else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def _both_systems(
    ours: Mapping[str, Output], theirs: Mapping[str, Output], members: Mapping[str, list[str]], stratum: str | None
) -> Stratum:
    """Scores of both systems on a stratum. The baseline's are None for a task that it has not translated."""
    model = {name: output.cell(stratum) for name, output in ours.items()}
    baseline = {
        name: theirs[name].cell(stratum) if name in theirs else TaskCell(lines=cell.lines)
        for name, cell in model.items()
    }
    return Stratum(SystemScores(model, averages(model, members)), SystemScores(baseline, averages(baseline, members)))


def _signatures(languages: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """sacreBLEU's signatures for each metric, by task; a metric that no task has is left out.

    Args:
        languages: the target language of each task.
    """
    by_task = {name: quality.signatures(language) for name, language in languages.items()}
    by_metric = {
        f.name: {name: found[f.name] for name, found in by_task.items() if f.name in found} for f in fields(Quality)
    }
    return {metric: found for metric, found in by_metric.items() if found}
