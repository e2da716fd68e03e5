"""The results of `cats compare`: scores of each method and seed, bootstrap intervals, and regret.

The table has the form of Table 2 of the CATS paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cats.nmt.config.toml import to_toml
from cats.nmt.data.corpus import Corpus
from cats.nmt.data.groups import task_groups
from cats.nmt.errors import UserError
from cats.nmt.files import one_line
from cats.nmt.scoring import hypotheses
from cats.nmt.scoring.bootstrap import cluster_counts, resampled_chrf
from cats.nmt.scoring.grid import Run
from cats.nmt.scoring.scores import Cell, Scores, read_scores
from cats.nmt.training.run import load_corpus

METRICS = ("nll", "chrf", "bleu")  # the fields of SeedScores
RESAMPLES = 1000

Samples = dict[str, dict[str, np.ndarray]]  # resampled chrF of each method and group, (RESAMPLES,)


@dataclass(frozen=True)
class SeedScores:
    """The scores of a task or of a group's average, a number for each seed."""

    nll: list[float]
    chrf: list[float]
    bleu: list[float]


@dataclass(frozen=True)
class MethodResult:
    """One method on one set.

    Attributes:
        groups: scores of the groups' averages, "all" included.
        languages: scores of the tasks.
        chrf_interval: 95 % bootstrap interval of each group's mean chrF.
        seeds: the seeds, in the order of the scores.
        seconds: time of training for each seed; None: not recorded.
        peak_memory: the most bytes that the training held, for each seed; None: not recorded.
        untrained: the seeds whose model is not trained: all its translations are empty, or every group's chrF is below
            that of the nearest-neighbour baseline.
    """

    groups: dict[str, SeedScores]
    languages: dict[str, SeedScores]
    chrf_interval: dict[str, tuple[float, float]]
    seeds: list[int]
    seconds: list[float | None]
    peak_memory: list[float | None]
    untrained: list[int]


@dataclass(frozen=True)
class SetResult:
    """All methods on one set.

    Attributes:
        pairs: training pairs of each task.
        groups: tasks of each group that has test lines, without "all".
        nearest_neighbour: the baseline's average of each group, "all" included.
        methods: the result of each method.
    """

    pairs: dict[str, int]
    groups: dict[str, list[str]]
    nearest_neighbour: dict[str, Cell]
    methods: dict[str, MethodResult]


@dataclass(frozen=True)
class Regret:
    """How much chrF a method loses to the best temperature.

    Attributes:
        worst: the loss in the worst of all sets and groups.
        interval: 95 % bootstrap interval of `worst`.
        where: the set and the group with the worst loss, such as "ted lores".
        cells: the loss for each set and group.
    """

    worst: float
    interval: tuple[float, float]
    where: str
    cells: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Everything that compare.json, the tables and the picture show.

    Attributes:
        seeds: all seeds, sorted.
        settings: configuration of the first run, as TOML.
        sets: the result for each set.
        regret: the regret of each method; empty if no temperature was compared.
    """

    seeds: list[int]
    settings: str
    sets: dict[str, SetResult]
    regret: dict[str, Regret]

    def to_json(self) -> dict[str, Any]:
        """The content of compare.json, where the nearest-neighbour baseline is called "lookup"."""
        sets = {
            name: {
                "pairs": result.pairs,
                "groups": result.groups,
                "lookup": {group: cell.measures() for group, cell in result.nearest_neighbour.items()},
                "methods": {method: asdict(scores) for method, scores in result.methods.items()},
            }
            for name, result in self.sets.items()
        }
        regret = {method: asdict(value) for method, value in self.regret.items()}
        return {"seeds": self.seeds, "settings": self.settings, "sets": sets, "regret": regret}


def summarise(runs: Sequence[Run]) -> Comparison:
    """Collects the results of finished runs, and computes bootstrap intervals and regrets.

    Raises:
        UserError: a run has no scores, or one of them is missing, as after training that diverged.
    """
    sets: dict[str, SetResult] = {}
    samples: dict[str, Samples] = {}
    for name in dict.fromkeys(run.set for run in runs):
        sets[name], samples[name] = _summarise_set([run for run in runs if run.set == name])
    return Comparison(
        seeds=sorted({run.seed for run in runs}),
        settings=to_toml(runs[0].config),
        sets=sets,
        regret=regrets(sets, samples),
    )


def regrets(sets: Mapping[str, SetResult], samples: Mapping[str, Samples]) -> dict[str, Regret]:
    """The regret of each method: the chrF it loses to the best temperature, in the worst set and group.

    A method that is at least as good as the best temperature everywhere has a worst regret of zero or less. In each
    resample the best temperature is chosen again.
    """
    cells = [(name, group) for name in sets for group in sets[name].groups]
    methods = list(next(iter(samples.values())))
    temperatures = [method for method in methods if method.startswith("T=")]
    if not temperatures:
        return {}

    def chrf(name: str, method: str, group: str) -> float:
        return float(np.mean(sets[name].methods[method].groups[group].chrf))

    result = {}
    for method in methods:
        lost = {
            (name, group): max(chrf(name, t, group) for t in temperatures) - chrf(name, method, group)
            for name, group in cells
        }
        resampled = [
            np.max([samples[name][t][group] for t in temperatures], axis=0) - samples[name][method][group]
            for name, group in cells
        ]
        worst = max(lost, key=lambda cell: lost[cell])
        result[method] = Regret(
            worst=lost[worst],
            interval=_interval(np.max(resampled, axis=0)),
            where=f"{worst[0]} {worst[1]}",
            cells={f"{name} {group}": value for (name, group), value in lost.items()},
        )
    return result


def _summarise_set(runs: Sequence[Run]) -> tuple[SetResult, Samples]:
    """The results of the runs of one set."""
    config = runs[0].config
    corpus = load_corpus(config.data)
    tasks = [task.name for task in corpus.tasks if task.test.rows(corpus.headline)]
    members = {g: [t for t in names if t in tasks] for g, names in task_groups(corpus.sizes, config.evaluate).items()}
    groups = {group: names for group, names in members.items() if names}
    scores = {run: read_scores(run.path) for run in runs}
    for run, found in scores.items():
        if lacking := [name for name in (*groups, *tasks) if name not in {**found.model.groups, **found.model.tasks}]:
            names = ", ".join(lacking)
            raise UserError(f"{run.path}/scores.json lacks {names}; make it again with: cats evaluate {run.path}")
    counts = _chrf_counts(scores, corpus)
    samples = {
        method: {group: np.mean([values[task] for task in names], axis=0) for group, names in groups.items()}
        for method, values in resampled_chrf(counts, RESAMPLES).items()
    }
    methods = {}
    for method in dict.fromkeys(run.method for run in runs):
        mine = {run: found for run, found in scores.items() if run.method == method}
        methods[method] = MethodResult(
            groups={g: _by_seed({run: found.model.groups[g] for run, found in mine.items()}) for g in groups},
            languages={t: _by_seed({run: found.model.tasks[t] for run, found in mine.items()}) for t in tasks},
            chrf_interval={group: _interval(values) for group, values in samples[method].items()},
            seeds=[run.seed for run in mine],
            seconds=[found.run.seconds for found in mine.values()],
            peak_memory=[found.run.peak_memory for found in mine.values()],
            untrained=[
                run.seed
                for run, found in mine.items()
                if found.is_below_baseline or _are_empty(counts[method][run.seed].values())
            ],
        )
    result = SetResult(
        pairs=corpus.sizes,
        groups={group: names for group, names in groups.items() if group != "all"},
        nearest_neighbour=scores[runs[0]].nearest_neighbour.groups,
        methods=methods,
    )
    return result, samples


def _chrf_counts(scores: Mapping[Run, Scores], corpus: Corpus) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """The chrF counts of the runs of one set, from their translations: {method: {seed: {task: (clusters, ..)}}}.

    Raises:
        UserError: a run was scored on other text than that of the corpus, or its translations were changed.
    """
    lines = {task.name: task.test.rows(corpus.headline) for task in corpus.tasks}
    tasks = [task for task in corpus.tasks if lines[task.name]]
    clusters = {
        task.name: [task.test.meta[i][1] if task.test.meta else task.test.source[i] for i in lines[task.name]]
        for task in tasks
    }
    index = {name: i for i, name in enumerate(sorted({c for names in clusters.values() for c in names}))}
    result: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for run, found in scores.items():
        counts = {}
        for task in tasks:
            translations, references = (hypotheses.read(run.path, found, task.name, part) for part in ("txt", "ref"))
            if references != [*map(one_line, task.test.target)]:
                raise UserError(
                    f"{run.path} was scored on other test lines of {task.name} than those of the corpus, which has "
                    "changed since these runs; restore it, or give another --out"
                )
            if len(translations) != len(references):
                raise UserError(
                    f"{run.directory.hypotheses_file(task.name, 'txt')} has {len(translations):,} lines instead of "
                    f"{len(references):,}: it was changed; make it again with: cats evaluate {run.path}"
                )
            chosen = lines[task.name]
            counts[task.name] = cluster_counts(
                [translations[i] for i in chosen],
                [task.test.target[i] for i in chosen],
                clusters[task.name],
                index,
            )
        result.setdefault(run.method, {})[run.seed] = counts
    return result


def _are_empty(counts: Iterable[np.ndarray]) -> bool:
    """Whether the translations that these chrF counts belong to are all empty."""
    return not any(each[..., 0].any() for each in counts)


def _by_seed(cells: Mapping[Run, Cell]) -> SeedScores:
    """The scores in the cells of one method, which has one run per seed."""
    return SeedScores(*([_score(run, cell, metric) for run, cell in cells.items()] for metric in METRICS))


def _score(run: Run, cell: Cell, metric: str) -> float:
    value = cell.get(metric)
    if value is None:
        raise UserError(f"{run.path}: a score is missing (did it diverge?); leave this method out")
    return value


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
