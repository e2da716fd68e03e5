"""The runs that a page is about: found on the disk, read, and named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError, command
from cats.nmt.files import read_file, short_names
from cats.nmt.scoring.compare.results import Comparison
from cats.nmt.scoring.compare.tables import comparison_tables
from cats.nmt.scoring.grid.folders import runs_in
from cats.nmt.scoring.pareto.results import FILE, Fronts, read_fronts
from cats.nmt.scoring.pareto.tables import fronts_tables
from cats.nmt.scoring.plots.runs import Runs, read_runs, recorded_tasks
from cats.nmt.scoring.scores import Scores, read_scores
from cats.nmt.training.metrics import read_metrics
from cats.nmt.training.run import RunDirectory

COMPARISON = "compare.json"


@dataclass(frozen=True)
class ReportedRun:
    """One run.

    Attributes:
        name: a short name that no other run of the page has.
        method: its name in pictures; runs of one method differ in the seed.
        records: the lines of metrics.jsonl.
        parameters: the number of the model's parameters. None: the run has no tokenizer.model, so it is not known.
    """

    name: str
    method: str
    path: Path
    config: Config
    scores: Scores
    records: Sequence[dict[str, Any]]
    parameters: int | None

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.path)


@dataclass(frozen=True)
class ReportedComparison:
    """The results of `cats compare` in one folder.

    Attributes:
        name: a short name that no other folder of the page has.
        tables: the content of compare.md.
    """

    name: str
    comparison: Comparison
    tables: str


@dataclass(frozen=True)
class ReportedFronts:
    """The results of `cats pareto` in one folder.

    Attributes:
        name: a short name that no other folder of the page has.
        tables: the content of front.md.
    """

    name: str
    fronts: Fronts
    tables: str


@dataclass(frozen=True)
class Content:
    """Everything that a page is about.

    Attributes:
        runs: those with scores; none, if the page is about fronts of the validation loss.
        drawn: the runs that are drawn together, by the name of their corpus.
        not_scored: the runs in folders that have no scores yet. Those of fronts need none.
        not_read: what is wrong with the runs in folders that cannot be read.
    """

    runs: list[ReportedRun]
    drawn: list[tuple[str, Runs]]
    comparisons: list[ReportedComparison]
    not_scored: list[Path]
    fronts: list[ReportedFronts]
    not_read: list[str]


def read(paths: Sequence[Path]) -> Content:
    """Reads runs.

    Args:
        paths: run directories, or folders of them, such as the one of a comparison or of fronts. Trials are left out.

    Raises:
        UserError: a path is neither, a run is not scored, or a file is damaged. Damaged runs in a folder are left out.
    """
    found: list[Path] = []
    without_scores: set[Path] = set()
    with_comparison, with_fronts = list[Path](), list[Path]()
    for path in {path.resolve(): path for path in paths}.values():
        if not path.exists():
            raise UserError(f"{path}: no such folder; give a run directory, as printed by cats train")
        inside = [path] if RunDirectory(path).is_started else runs_in(path)
        if (path / FILE).is_file():
            with_fronts.append(path)
            without_scores |= {*inside}
        elif not inside:
            raise UserError(f"{path} is neither a run directory nor a folder of them; give one that cats train printed")
        found += inside
        if (path / COMPARISON).is_file():
            with_comparison.append(path)
    given = {*paths}
    found = [*{path.resolve(): path for path in found}.values()]  # a run may be named twice
    scored = [path for path in found if path in given or RunDirectory(path).scores_file().exists()]
    if not scored and not with_fronts:
        raise UserError(
            f"{found[0]} and the other runs are not scored yet; score one with: {command('evaluate', found[0])}"
        )
    comparisons = [_read_comparison(path, name) for path, name in _named(with_comparison)]
    fronts = [_read_fronts(path, name) for path, name in _named(with_fronts)]
    runs, not_read = list[ReportedRun](), list[UserError]()
    for path, name in _named(scored):
        try:
            runs.append(_read_run(path, name))
        except UserError as error:
            if path in given:
                raise
            not_read.append(error)
    if not runs and not fronts:
        raise not_read[0]
    drawn = _drawn(runs)
    methods = {each.path: each.method for _, together in drawn for each in together.runs}
    runs = [replace(run, method=methods.get(run.path, run.method)) for run in runs]
    not_scored = [path for path in found if path not in scored and path not in without_scores]
    return Content(runs, drawn, comparisons, not_scored, fronts, [*map(str, not_read)])


def _named(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The paths, each with a short name that no other one has."""
    return zip(paths, short_names(paths), strict=True)


def _drawn(runs: Iterable[ReportedRun]) -> list[tuple[str, Runs]]:
    """The runs with metrics, those of one corpus and of the same tasks together."""
    found: dict[tuple[str, frozenset[str]], list[Path]] = {}
    for run in runs:
        if run.records:
            found.setdefault((run.scores.run.corpus, frozenset(recorded_tasks(run.records))), []).append(run.path)
    return [(corpus, read_runs(paths)) for (corpus, _), paths in found.items()]


def _read_run(path: Path, name: str) -> ReportedRun:
    directory = RunDirectory(path)
    config = directory.read_config()
    records, parameters = read_metrics(directory.metrics_file), directory.parameter_count(config)
    method = name.rpartition("/")[2].removesuffix(f"-seed{config.train.seed}")  # unless the pictures have another name
    return ReportedRun(name, method, path, config, read_scores(path), records, parameters)


def _read_comparison(folder: Path, name: str) -> ReportedComparison:
    path = folder / COMPARISON
    try:
        comparison = Comparison.from_json(json.loads(read_file(path)))
        return ReportedComparison(name, comparison, comparison_tables(comparison))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is damaged or of an older version; make it again with: cats compare --only-finished"
        ) from None


def _read_fronts(folder: Path, name: str) -> ReportedFronts:
    fronts = read_fronts(folder)
    return ReportedFronts(name, fronts, fronts_tables(fronts))
