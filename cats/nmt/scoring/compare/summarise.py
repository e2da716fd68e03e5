"""Collects the results of a comparison from its run directories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from cats.nmt.config.toml import to_toml
from cats.nmt.data.cldr.sets import NOISY
from cats.nmt.data.corpus import Corpus
from cats.nmt.data.groups import task_groups
from cats.nmt.errors import UserError, command
from cats.nmt.files import one_line
from cats.nmt.scoring import hypotheses
from cats.nmt.scoring.bootstrap import bleu, cluster_counts, cluster_sums, resampled_scores
from cats.nmt.scoring.compare.baseline import nearest_neighbour
from cats.nmt.scoring.compare.inference import Samples, differences, interval, regrets
from cats.nmt.scoring.compare.results import (
    CLEAN,
    METRICS,
    BleuDifference,
    Comparison,
    Difference,
    MethodResult,
    SeedScores,
    SetResult,
    TrialResult,
)
from cats.nmt.scoring.grid.methods import FIXED, is_fixed_temperature
from cats.nmt.scoring.grid.runs import Run, chosen, trial_nlls, validation_settings
from cats.nmt.scoring.grid.trials import as_settings, group_mean
from cats.nmt.scoring.scores import Cell, Scores, TaskCell, read_scores
from cats.nmt.scoring.significance import line_bleu_counts
from cats.nmt.scoring.summarise import averages
from cats.nmt.training.load_corpus import load_corpus
from cats.nmt.training.metrics import best_validation, read_metrics

RESAMPLES = 2000

Records = list[dict[str, Any]]  # the lines of a run's metrics.jsonl
Counts = dict[str, dict[int, dict[str, np.ndarray]]]  # {method: {seed: {task: (its clusters, ..)}}}


class Translated(NamedTuple):
    """The test lines of a task that the tables show: a run's translations, the references, and the clusters."""

    translations: list[str]
    references: list[str]
    clusters: list[str]


def summarise(runs: Sequence[Run], baseline: str = "") -> Comparison:
    """Collects the results of the finished runs, and computes intervals, significance and regrets.

    Args:
        baseline: the method that the others are compared with. "", and where it is not finished: the one with the best
            validation NLL, see ``_Set.best_baseline``.

    Raises:
        UserError: no run is finished, the files of one do not fit, or a score is missing.
    """
    if not any(run.finished for run in runs):
        raise UserError(f"no run of {runs[0].path.parent} is finished: there is nothing to compare yet")
    sets: dict[str, SetResult] = {}
    samples: dict[str, Samples] = {}
    for number, name in enumerate(dict.fromkeys(run.set for run in runs if run.finished)):
        found = _Set([run for run in runs if run.set == name])
        samples[name] = found.samples(number)
        sets[name] = found.result(samples[name], number, baseline)
    everywhere = [
        method
        for method in dict.fromkeys(run.method for run in runs)
        if all(method in result.methods for result in sets.values())
    ]
    means = {
        name: {
            method: {group: float(np.mean(scores.chrf)) for group, scores in found.groups.items()}
            for method, found in result.methods.items()
        }
        for name, result in sets.items()
    }
    groups = {name: list(result.groups) for name, result in sets.items()}
    temperatures = [method for method in everywhere if is_fixed_temperature(method)]
    return Comparison(
        seeds=sorted({run.seed for run in runs}),
        settings=to_toml(runs[0].config),
        sets=sets,
        regret=regrets(means, samples, groups, everywhere, temperatures),
        regret_of_all=regrets(means, samples, groups, everywhere, everywhere),
    )


class _Set:
    """The runs of one set and what they are scored on."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.planned, self.runs = runs, [run for run in runs if run.finished]
        self.config = self.runs[0].config
        self.corpus = load_corpus(self.config.data)
        self.tasks = [task.name for task in self.corpus.tasks if task.test.rows(self.corpus.headline)]
        members = {
            group: [name for name in names if name in self.tasks]
            for group, names in task_groups(self.corpus.sizes, self.config.evaluate).items()
        }
        self.groups = {group: names for group, names in members.items() if names}
        for group, names in list(self.groups.items()):
            clean = [name for name in names if name not in self.noisy]
            if group in CLEAN and clean and clean != names:
                self.groups[CLEAN[group]] = clean
        self.scores = {run: read_scores(run.path) for run in self.runs}
        for run, found in self.scores.items():
            names = [*(group for group in members if members[group]), *self.tasks]
            if lacking := [name for name in names if name not in {**found.model.groups, **found.model.tasks}]:
                names_lacking = ", ".join(lacking)
                raise UserError(
                    f"{run.path}/scores.json lacks {names_lacking}; make it again with: {command('evaluate', run.path)}"
                )

    @cached_property
    def noisy(self) -> tuple[str, ...]:
        """The tasks with wrong translations in their training text, as far as the settings say so."""
        data = self.config.data
        return NOISY[data.languages] if data.sizes == "noisy" and not data.path else ()

    @cached_property
    def nearest_neighbour(self) -> tuple[dict[str, TaskCell], dict[str, Cell]]:
        """The scores of the baseline for each task, and for each group."""
        kept = next(iter(self.scores.values())).nearest_neighbour
        if any(cell.quality.chrf is not None for cell in kept.groups.values()):
            return kept.tasks, {
                group: kept.groups.get(group) or averages(kept.tasks, {group: names})[group]
                for group, names in self.groups.items()
            }
        tasks = nearest_neighbour(self.corpus, self.config.evaluate, self.runs[0].path.parent)
        known = {group: [name for name in names if name in tasks] for group, names in self.groups.items()}
        return tasks, averages(tasks, known)

    @cached_property
    def translated(self) -> dict[Run, dict[str, Translated]]:
        """The translations of each run and task."""
        return {run: _translated(run, found, self.corpus) for run, found in self.scores.items()}

    @cached_property
    def index(self) -> dict[str, dict[str, int]]:
        """For each task the number of each of its clusters, the same in all runs."""
        tasks = next(iter(self.translated.values()))
        return {task: {name: i for i, name in enumerate(sorted({*lines.clusters}))} for task, lines in tasks.items()}

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """For each task, the number that each of its clusters has among those of all tasks."""
        every = {name: i for i, name in enumerate(sorted({name for own in self.index.values() for name in own}))}
        return {task: np.array([every[name] for name in own]) for task, own in self.index.items()}

    @cached_property
    def counts(self) -> Counts:
        """The chrF counts of the runs."""
        return self._by_method(lambda _run, task, lines: cluster_counts(*lines, self.index[task]))

    def bleu_counts(self) -> Counts:
        """The BLEU counts of the runs, with the tokenizers that they were scored with."""

        def count(run: Run, task: str, lines: Translated) -> np.ndarray:
            tokenizer = self.scores[run].bleu_tokenizer(task) or "13a"
            counts = line_bleu_counts(lines.translations, lines.references, tokenizer)
            return cluster_sums(counts, lines.clusters, self.index[task])

        return self._by_method(count)

    def _by_method(self, count: Callable[[Run, str, Translated], np.ndarray]) -> Counts:
        result: Counts = {}
        for run, tasks in self.translated.items():
            counts = {task: count(run, task, lines) for task, lines in tasks.items()}
            result.setdefault(run.method, {})[run.seed] = counts
        return result

    def samples(self, seed: int) -> Samples:
        """Resampled chrF of each method and group."""
        every = self._with_groups(resampled_scores(self.counts, RESAMPLES, seed, rows=self.rows))
        return {method: {group: values[group] for group in self.groups} for method, values in every.items()}

    def bleu_samples(self, seed: int) -> Samples:
        """Resampled BLEU of each method, and each task and group."""
        return self._with_groups(resampled_scores(self.bleu_counts(), RESAMPLES, seed, bleu, self.rows))

    def _with_groups(self, samples: Samples) -> Samples:
        return {
            method: {
                **values,
                **{group: np.mean([values[task] for task in names], axis=0) for group, names in self.groups.items()},
            }
            for method, values in samples.items()
        }

    def result(self, samples: Samples, seed: int, named: str) -> SetResult:
        methods = {
            method: self._method(method, samples[method]) for method in dict.fromkeys(run.method for run in self.runs)
        }
        baseline = named if named in methods else self.best_baseline(methods)
        if baseline:
            compared = {
                method: {group: float(np.mean(scores.chrf)) for group, scores in found.groups.items()}
                for method, found in methods.items()
            }
            in_bleu = {
                method: {name: float(np.mean(scores.bleu)) for name, scores in (found.languages | found.groups).items()}
                for method, found in methods.items()
            }
            against = differences(compared, samples, baseline, Difference)
            against_bleu = differences(in_bleu, self.bleu_samples(seed), baseline, BleuDifference)
            methods = {
                name: replace(found, differences=against.get(name, {}), bleu_differences=against_bleu.get(name, {}))
                for name, found in methods.items()
            }
        return SetResult(
            pairs=self.corpus.sizes,
            groups={group: names for group, names in self.groups.items() if group != "all"},
            nearest_neighbour=self.nearest_neighbour[1],
            nearest_neighbour_tasks={task: Cell(cell.quality) for task, cell in self.nearest_neighbour[0].items()},
            methods=methods,
            baseline=baseline,
            not_run=[name for name in dict.fromkeys(run.method for run in self.planned) if name not in methods],
            other_validation=self.other_validation,
            named_baseline=named in methods,
        )

    def _method(self, method: str, samples: Mapping[str, np.ndarray]) -> MethodResult:
        mine = {run: found for run, found in self.scores.items() if run.method == method}
        records = [read_metrics(run.directory.metrics_file) for run in mine]
        first = next(iter(mine))
        tuned = bool(first.trials) and all(trial.run.finished for trial in first.trials)
        groups = {run: self._groups(found) for run, found in mine.items()}
        return MethodResult(
            groups={g: _by_seed({run: cells[g] for run, cells in groups.items()}) for g in self.groups},
            languages={t: _by_seed({run: found.model.tasks[t] for run, found in mine.items()}) for t in self.tasks},
            chrf_interval={group: interval(np.clip(values, 0, 100)) for group, values in samples.items()},
            seeds=[run.seed for run in mine],
            seconds=[found.run.seconds for found in mine.values()],
            peak_memory=[found.run.peak_memory for found in mine.values()],
            untrained=[run.seed for run in mine if self._is_untrained(groups[run], self.counts[method][run.seed])],
            cpu_seconds=[found.run.cpu_seconds for found in mine.values()],
            missing=[run.seed for run in self.planned if run.method == method and not run.finished],
            validation=[self._validation(each) for each in records],
            tokens=_mean_seen(records, "tokens"),
            examples=_mean_seen(records, "examples") if all(map(_have_examples, records)) else {},
            trials=[
                TrialResult(dict(as_settings(trial.settings)), nll if np.isfinite(nll) else None)
                for trial, nll in zip(first.trials, trial_nlls(first.trials), strict=True)
            ]
            if tuned
            else [],
            chosen=dict(as_settings(chosen(first.trials).settings)) if tuned else {},
        )

    def _groups(self, scores: Scores) -> dict[str, Cell]:
        """The averages of the groups, those of this set included."""
        own = averages(scores.model.tasks, self.groups)
        return {group: scores.model.groups.get(group, own[group]) for group in self.groups}

    def _is_untrained(self, groups: Mapping[str, Cell], counts: Mapping[str, np.ndarray]) -> bool:
        pairs = [(cell.quality.chrf, self.nearest_neighbour[1][group].quality.chrf) for group, cell in groups.items()]
        known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        return _are_empty(counts.values()) or (bool(known) and all(ours < theirs for ours, theirs in known))

    def _validation(self, records: Records) -> float | None:
        """The validation NLL of a run's best checkpoint: mean over the groups. None: not recorded."""
        best = best_validation(records)
        if best is None:
            return None
        named = {group: names for group, names in self.groups.items() if group not in CLEAN.values()}
        chosen = [names for group, names in named.items() if group != "all"] or [*named.values()]
        value = group_mean([group_mean([best["valid"]["nll"].get(name) for name in names]) for names in chosen])
        return value if np.isfinite(value) else None

    @cached_property
    def other_validation(self) -> list[str]:
        """The methods whose validation NLL is of other lines or other pieces than that of most methods."""
        own = {run.method: validation_settings(run.config) for run in self.runs}
        names = {run.method: run.config.method.name for run in self.runs}
        # target-projection trains on a part of the validation pairs: the usual lines are those of the other methods.
        usual = [each for method, each in own.items() if names[method] != "target-projection"] or [*own.values()]
        most = Counter(usual).most_common(1)[0][0]
        return [method for method, each in own.items() if each != most]

    def best_baseline(self, methods: Mapping[str, MethodResult]) -> str:
        """The method with the best validation NLL among those that do not use the weights of cats; "" if none is known.

        Only methods with the most seeds can be chosen, and only those that are validated on the same lines.
        """
        others = {
            run.method for run in self.runs if run.config.method.name != "cats" and not run.method.endswith(FIXED)
        }.difference(self.other_validation)
        most = max((len(methods[name].seeds) for name in others), default=0)
        known = {
            name: found.mean_validation
            for name, found in methods.items()
            if name in others and len(found.seeds) == most and np.isfinite(found.mean_validation)
        }
        return min(known, key=lambda name: known[name], default="")


def _mean_seen(runs: Iterable[Records], what: str) -> dict[str, float]:
    """The "tokens" or "examples" of each task that the runs were trained on, mean over the runs."""
    totals: dict[str, list[int]] = {}
    for records in runs:
        own: dict[str, int] = {}
        for record in records:
            for task, count in record.get(what, {}).items():
                own[task] = own.get(task, 0) + count
        for task, count in own.items():
            totals.setdefault(task, []).append(count)
    return {task: float(np.mean(counts)) for task, counts in totals.items()}


def _have_examples(records: Records) -> bool:
    """Whether all lines of a run's losses have the number of sentence pairs. Those of older versions have not."""
    lines = [record for record in records if "tokens" in record]
    return bool(lines) and all("examples" in line and None not in line["examples"].values() for line in lines)


def _translated(run: Run, scores: Scores, corpus: Corpus) -> dict[str, Translated]:
    """The translations of one run, for each task with lines that the tables show.

    Raises:
        UserError: the run was scored on other text than that of the corpus, or its translations were changed.
    """
    settings = run.directory.read_config().evaluate
    result = {}
    for task in corpus.tasks:
        test, known = task.test, {*task.test.rows(corpus.headline)}
        if not known:
            continue
        rows = hypotheses.translated_rows(test, corpus.headline, settings)
        translations, references = (hypotheses.read(run.path, scores, task.name, part) for part in ("txt", "ref"))
        if references != [one_line(test.target[i]) for i in rows]:
            raise UserError(
                f"{run.path} was scored on other test lines of {task.name} than those of the corpus, which has "
                "changed since these runs; restore it, or give another --out"
            )
        if len(translations) != len(references):
            raise UserError(
                f"{run.directory.hypotheses_file(task.name, 'txt')} has {len(translations):,} lines instead of "
                f"{len(references):,}: it was changed; make it again with: {command('evaluate', run.path)}"
            )
        shown = [(i, text) for i, text in zip(rows, translations, strict=True) if i in known]
        result[task.name] = Translated(
            [text for _, text in shown],
            [test.target[i] for i, _ in shown],
            [test.meta[i][1] if test.meta else test.source[i] for i, _ in shown],
        )
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
