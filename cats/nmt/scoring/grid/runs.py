"""One run of a comparison: its files, what it depends on, and whether it can be resumed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import FIELDS, Config
from cats.nmt.config.toml import apply_overrides, read_config
from cats.nmt.errors import UserError
from cats.nmt.methods import options
from cats.nmt.scoring.grid.methods import unused_settings
from cats.nmt.scoring.grid.trials import validation_nll
from cats.nmt.scoring.scores import read_scores

if TYPE_CHECKING:
    from cats.nmt.training.run import RunDirectory

# Settings that do not make a run another one. The number of threads depends on --jobs and on the machine. The others
# only decide what is scored beside what the table needs.
_HARMLESS = {"train.threads", "evaluate.strata", "evaluate.baseline"}


@dataclass(frozen=True)
class Run:
    """One run of the grid.

    Attributes:
        set: the name of its set, or of the folder of its corpus.
        config: its settings, without those that follow from `trials` and `source`; see `settled`.
        trials: the trials of its method. Empty: nothing is chosen.
        source: for a method NAME-fixed, the run of the method NAME with the same seed.
    """

    set: str
    method: str
    seed: int
    path: Path
    config: Config
    trials: tuple[Trial, ...] = ()
    source: Run | None = None

    @property
    def directory(self) -> RunDirectory:
        # Imported here because it imports torch, which would make `cats compare --help` slow.
        from cats.nmt.training.run import RunDirectory

        return RunDirectory(self.path)

    @property
    def started(self) -> bool:
        """Whether the run can be resumed."""
        checkpoints = [self.directory.checkpoint(name) for name in ("last", "previous")]
        return self.directory.config_file.exists() and any(path.exists() for path in checkpoints)

    @property
    def finished(self) -> bool:
        """Whether the run is trained and scored; for a trial, also whether it diverged, which settles it."""
        if self.config.evaluate.search != "none":
            return self.directory.scores_file().exists()
        return self.directory.scores_file("valid").exists() or bool(self.directory.divergence())

    @property
    def needs(self) -> list[Run]:
        """The runs that must be finished before this one can start."""
        return [*(trial.run for trial in self.trials), *([] if self.source is None else [self.source])]

    def settled(self) -> Run:
        """This run with all of its settings. The runs that it needs must be finished.

        Raises:
            UserError: all trials diverged, or the source has no weights.
        """
        config = self.config
        if self.trials:
            config = apply_overrides(config, chosen(self.trials).settings)
        if self.source is not None:
            weights = mean_weights(self.source)
            config = replace_settings(config, {"method.weights": weights})
        return replace(self, config=config)


@dataclass(frozen=True)
class Trial:
    """One trial of a method: its run, and what it sets."""

    run: Run
    settings: tuple[str, ...]


def everything(runs: Iterable[Run]) -> list[Run]:
    """The runs and their trials, in the order in which they should be trained."""
    runs = list(runs)
    tuning = {trial.run.path: trial.run for run in runs for trial in run.trials}
    return [*tuning.values(), *runs]


def check_all(runs: Iterable[Run]) -> None:
    """Finds the errors that all runs would end with, before any of them is started.

    Raises:
        UserError: two methods would have the same folder, the options of a method are wrong, or `check_resumable`
            raises for a run or a trial whose settings are known by now.
    """
    runs = list(runs)
    by_path: dict[Path, Run] = {}
    for run in runs:
        if (other := by_path.setdefault(run.path, run)) is not run:
            raise UserError(f"methods {other.method} and {run.method} would both be {run.path}; rename one of them")
    for run in runs:
        options.check(run.config.method.name, run.config.method.options)
    for run in everything(runs):
        if all(needed.finished for needed in run.needs):
            try:
                settled = run.settled()
            except UserError:  # nothing can be chosen; it is reported when it is this run's turn
                continue
            check_resumable(settled)


def check_resumable(run: Run) -> None:
    """Removes the directory of a run that was stopped before its first checkpoint, so that it can start again.

    Raises:
        UserError: the directory has a run with other settings, or another process is training it.
    """
    if not run.path.exists():
        return
    config = run.directory.config_file
    if config.exists():
        there, planned = _relevant_settings(read_config(config)), _relevant_settings(run.config)
        if other := [name for name, value in planned.items() if there.get(name) != value]:
            raise UserError(
                f"{run.path} has a run with other settings ({', '.join(other)}); give another --out, or remove it"
            )
    if not run.finished and not run.started:
        with run.directory.training_lock():
            shutil.rmtree(run.path)


def mean_weights(run: Run) -> list[float]:
    """The mean over time of each task's weight in a finished run, in the order of the tasks.

    Raises:
        UserError: its metrics have no weights, or weights of 0 only.
    """
    from cats.nmt.training.metrics import read_metrics

    path = run.directory.metrics_file
    weights: dict[str, list[float]] = {}
    for record in read_metrics(path):
        for task, value in record.get("alpha", {}).items():
            weights.setdefault(task, []).append(value or 0.0)
    means = [sum(values) / len(values) for values in weights.values()]
    if not any(means):
        raise UserError(f"{path} has no weights to average; train the run again")
    return means


def trial_nlls(trials: Sequence[Trial]) -> list[float]:
    """The validation NLL of each finished trial; inf for one that diverged."""
    return [
        math.inf
        if trial.run.directory.divergence()
        else validation_nll(read_scores(trial.run.path, "scores.valid.json"))
        for trial in trials
    ]


def chosen(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest validation NLL, the first one of several.

    Raises:
        UserError: all trials diverged.
    """
    nlls = trial_nlls(trials)
    best = min(range(len(trials)), key=lambda i: nlls[i])
    if not math.isfinite(nlls[best]):
        raise UserError(f"all trials diverged, such as {trials[0].run.path}; give lower values to --lr")
    return trials[best]


def _relevant_settings(config: Config) -> dict[str, object]:
    """The settings that make a run another run, by their names.

    Settings that the method does not use are left out. A run of static weights stays valid when the defaults of the
    method cats change.
    """
    unused = {*_HARMLESS, *unused_settings(config)}
    values = {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in FIELDS}
    return {name: value for name, value in values.items() if name not in unused}
