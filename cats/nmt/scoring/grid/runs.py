"""One run of a comparison: its files, what it depends on, and whether it can be resumed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cats.nmt.config.checks import format_value, replace_settings
from cats.nmt.config.recipes import first_phase
from cats.nmt.config.schema import FIELDS, Config, value_of
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
_PHASE = "train.pretrain_steps"


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
        scored = any(self.directory.scores_file(split).exists() for split in ("valid", "test"))
        return scored or bool(self.directory.divergence())

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
            config = replace_settings(config, constant_weights(self.source))
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
    """Prepares the directory of a run that was stopped, so that it can go on.

    If it was stopped before its first checkpoint, its directory is removed, so that it can start again. If it was
    trained without translating anything, and this is to be translated, config.toml says so from now on.

    Raises:
        UserError: the directory has a run with other settings, or another process is training it.
    """
    if not run.path.exists():
        return
    if run.directory.config_file.exists():
        config = read_config(run.directory.config_file)
        there, planned = _relevant_settings(config), _relevant_settings(run.config)
        searches = there.pop("evaluate.search"), planned.pop("evaluate.search")
        # A setting that is not in `there` has no effect on that run, because its method is another one, which is named.
        other = {name: (there.get(name), value) for name, value in planned.items() if there.get(name, value) != value}
        untranslated = searches[0] == "none" != searches[1]
        # Without its last checkpoint, a finished run could not go on, and must not be removed.
        lost = untranslated and not run.started and run.directory.scores_file("valid").exists()
        if lost or ("none" not in searches and searches[0] != searches[1]):
            other["evaluate.search"] = searches
        if other:
            if "train.steps" in other:  # the recipes set the length of the first phase by that of the training
                phases = tuple(first_phase(each.train.steps) for each in (config, run.config))
                other = {name: values for name, values in other.items() if name != _PHASE or values != phases}
            said = [f"{name} = {format_value(then)}, now {format_value(now)}" for name, (then, now) in other.items()]
            raise UserError(
                f"{run.path} has a run with other settings ({'; '.join(said)}); give another --out, or remove it"
            )
        if untranslated:
            with run.directory.training_lock():
                run.directory.write_config(replace_settings(config, {"evaluate.search": searches[1]}))
    if not run.finished and not run.started:
        with run.directory.training_lock():
            shutil.rmtree(run.path)


def validation_settings(config: Config) -> tuple[object, ...]:
    """What decides which lines of a corpus a run is validated on, and their pieces.

    NLLs per piece are comparable only between runs that have the same of these.
    """
    return config.method.name == "target-projection", config.model.max_length, config.tokenizer


def constant_weights(run: Run) -> dict[str, Any]:
    """The settings with which static training weights the tasks as a finished run of cats did, but constantly.

    If alpha follows the tokens of each batch, alpha_n is the share π_n of task n in them times a factor. The mean of
    the factor over time, Σ alpha_n / Σ π_n over the lines of the metrics, is how much a token of the task counts
    (`method.token_weights`). With factors that never change, both runs weight all batches alike. Otherwise the mean of
    alpha_n is the weight of the task's mean loss (`method.weights`).

    alpha starts anew at a reset (`train.restart` or `train.pretrain`), often with another mixture. One list cannot be
    right in both phases: it is the mean over the second one, which is longer and decides the result. A task that has no
    tokens there gets the mean over the whole run.

    Raises:
        UserError: its metrics have no weights, or weights of 0 only.
    """
    from cats.nmt.training.metrics import read_metrics

    path, method, train = run.directory.metrics_file, run.config.method, run.config.train
    lines = [record for record in read_metrics(path) if "alpha" in record]
    reset = train.pretrain_steps if train.restart_parts != "learning-rate" else 0
    starts = [0, *(record["step"] for record in lines)]  # the updates that the lines count from
    second = [record for record, start in zip(lines, starts, strict=False) if start >= reset]
    known = {**_relative_alpha(lines, method.follows_tokens), **_relative_alpha(second, method.follows_tokens)}
    if not any(known.values()):
        raise UserError(f"{path} has no weights to average; train the run again")
    means = [known.get(task, 1.0) for task in lines[0]["alpha"]]  # a task that is never trained needs a number, too
    if method.follows_tokens:
        return {"method.weights": "tokens", "method.token_weights": means}
    return {"method.weights": means, "method.token_weights": []}


def _relative_alpha(lines: Iterable[Mapping[str, Any]], by_tokens: bool) -> dict[str, float]:
    """{task: mean of alpha relative to its share of the tokens}, or of alpha itself. Only tasks that have tokens.

    The share is that of alpha's batch. Older metrics lack it: there it is that of all batches since the line before.
    """
    alphas: dict[str, float] = {}
    shares: dict[str, float] = {}
    for line in lines:
        tokens = line.get("prior") or line.get("tokens", {})
        total = sum(tokens.values()) or 1.0
        for task, alpha in line["alpha"].items():
            alphas[task] = alphas.get(task, 0.0) + (alpha or 0.0)
            shares[task] = shares.get(task, 0.0) + (tokens.get(task, 0.0) / total if by_tokens else 1.0)
    return {task: alphas[task] / shares[task] for task in alphas if shares[task]}


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
    return {name: value_of(config, name) for name in FIELDS if name not in unused}
