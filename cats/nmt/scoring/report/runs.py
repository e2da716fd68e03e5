"""The runs that a page is about: found on the disk, read, and named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError
from cats.nmt.files import as_text, read_file
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
        name: the name of the folder.
        tables: the content of compare.md.
    """

    name: str
    comparison: Comparison
    tables: str


@dataclass(frozen=True)
class ReportedFronts:
    """The results of `cats pareto` in one folder.

    Attributes:
        name: the name of the folder.
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
    """

    runs: list[ReportedRun]
    drawn: list[tuple[str, Runs]]
    comparisons: list[ReportedComparison]
    not_scored: list[Path]
    fronts: list[ReportedFronts]


def read(paths: Sequence[Path]) -> Content:
    """Reads runs.

    Args:
        paths: run directories, or folders of them, such as the one of a comparison or of fronts. Trials are left out.

    Raises:
        UserError: a path is neither, a run is not scored, or a file is damaged.
    """
    found: list[Path] = []
    without_scores: set[Path] = set()
    comparisons: list[ReportedComparison] = []
    fronts: list[ReportedFronts] = []
    for path in dict.fromkeys(paths):
        inside = [path] if RunDirectory(path).is_started else runs_in(path)
        if (path / FILE).is_file():
            fronts.append(_read_fronts(path))
            without_scores |= {*inside}
        elif not inside:
            raise UserError(f"{path} is neither a run directory nor a folder of them; give one that cats train printed")
        found += inside
        if (path / COMPARISON).is_file():
            comparisons.append(_read_comparison(path / COMPARISON))
    given = {*paths}
    found = [*{path.resolve(): path for path in found}.values()]  # a run may be named twice
    scored = [path for path in found if path in given or RunDirectory(path).scores_file().exists()]
    if not scored and not fronts:
        raise UserError(f"{found[0]} and the other runs are not scored yet; score one with: cats evaluate {found[0]}")
    names = _short_names(scored)
    runs = [_read_run(path, name) for path, name in zip(scored, names, strict=True)]
    drawn = _drawn(runs)
    methods = {each.path: each.method for _, together in drawn for each in together.runs}
    runs = [replace(run, method=methods.get(run.path, run.method)) for run in runs]
    not_scored = [path for path in found if path not in scored and path not in without_scores]
    return Content(runs, drawn, comparisons, not_scored, fronts)


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


def _read_comparison(path: Path) -> ReportedComparison:
    try:
        comparison = Comparison.from_json(json.loads(read_file(path)))
        return ReportedComparison(as_text(path.resolve().parent.name), comparison, comparison_tables(comparison))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is damaged or of an older version; make it again with: cats compare --only-finished"
        ) from None


def _read_fronts(folder: Path) -> ReportedFronts:
    fronts = read_fronts(folder)
    return ReportedFronts(as_text(folder.resolve().name), fronts, fronts_tables(fronts))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1)):
        names = [as_text("/".join(each[-count:])) for each in parts]
        if len({*names}) == len(names):
            return names
    return [as_text(str(path.resolve())) for path in paths]
