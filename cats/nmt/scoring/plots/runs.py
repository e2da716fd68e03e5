"""The runs that are drawn together: their settings, metrics and scores, grouped by method."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from cats.nmt.config.checks import format_value
from cats.nmt.config.schema import FIELDS, Config, value_of
from cats.nmt.data.groups import task_groups
from cats.nmt.errors import UserError
from cats.nmt.files import as_text
from cats.nmt.scoring.grid.methods import unused_settings
from cats.nmt.scoring.scores import TITLES, Scores, read_scores
from cats.nmt.training.metrics import read_metrics
from cats.nmt.training.run import RunDirectory

# Runs that differ only in these are seeds of one method. Weights that are a list are constants from another run of the
# same seed (NAME-fixed of cats compare).
_SEEDS = {
    *("train.seed", "train.threads", "train.log_every", "train.save_every", "train.keep", "train.analyse_every"),
    *("train.validate_every", "train.validate_bleu", "train.validate_lines", "train.wandb", "method.token_weights"),
}
_NOT_TRAINING = ("decode.", "evaluate.")
_MOST_SHOWN = 2  # settings in the name of a method


class NothingToDraw(UserError):
    """The runs lack what a picture shows. The message says what, and where it comes from."""


@dataclass(frozen=True)
class PlottedRun:
    """One run.

    Attributes:
        method: its name in pictures. Runs of one name are seeds of the same method.
        records: the lines of its metrics.jsonl, at least one.
        scores: None: it is not evaluated, or its scores are damaged or of an older version.
    """

    path: Path
    method: str
    config: Config
    records: list[dict[str, Any]]
    scores: Scores | None

    @property
    def tasks(self) -> set[str]:
        """The tasks that it was trained or validated on."""
        return recorded_tasks(self.records)


@dataclass(frozen=True)
class Runs:
    """The runs of a picture.

    Attributes:
        runs: at least one.
        groups: tasks of LoRes, MidRes and HiRes, as far as they are known and have tasks; else of "all".
        pairs: training pairs of each task; empty if they are not known.
        notices: a line for each run that is left out, for each whose scores cannot be read, and for settings that
            follow from that of the axis.
    """

    runs: list[PlottedRun]
    groups: dict[str, list[str]]
    pairs: dict[str, int]
    notices: list[str]

    @property
    def methods(self) -> dict[str, list[PlottedRun]]:
        """{method: its runs}, in the order of the runs."""
        found: dict[str, list[PlottedRun]] = {}
        for run in self.runs:
            found.setdefault(run.method, []).append(run)
        return found

    @property
    def tasks(self) -> list[str]:
        """All tasks, those with the fewest training pairs first."""
        names = dict.fromkeys(name for members in self.groups.values() for name in members)
        return sorted(names, key=lambda name: (self.pairs.get(name, 0), name))

    @property
    def panels(self) -> dict[str, list[str]]:
        """{title: tasks} of the groups."""
        return {TITLES[group]: members for group, members in self.groups.items()}


def read_runs(paths: Iterable[Path], *, against: str = "", named: Collection[Path] | None = None) -> Runs:
    """Reads runs to draw them together.

    A method has the name that `cats compare` gave its folder; other runs have that of their settings: method.name, or
    T=3 for plain token means. If runs of one name differ in other settings than the seed, the name shows them.

    Args:
        paths: run directories.
        against: a setting that a picture shows on its axis, "section.key". It makes no difference between methods, nor
            do settings that follow from it, such as model.ffn from model.d_model, and the names of folders where these
            show it: pre70, pre245.
        named: those of `paths` that the user has named; the others were found in folders, and those that cannot be read
            are left out. None: all.

    Raises:
        NothingToDraw: none has metrics.
        UserError: one of them is not a run directory or damaged, or they have different tasks.
    """
    runs, notices = [], []
    given = {path.resolve(): path for path in paths}  # a run may be named twice
    for place, path in given.items():
        # cats compare keeps the settings of each run beside it, from before it begins; *-seed* of a shell names both.
        if path.suffix == ".toml" and path.is_file():
            if place.with_suffix("") not in given:
                notices.append(f"{path.with_suffix('')} has not begun yet; left out")
            continue
        directory = RunDirectory(path)
        try:
            config = directory.read_config()
            records = read_metrics(directory.metrics_file)
        except UserError as error:
            if named is None or path in named:
                raise
            notices.append(f"{error}; left out")
            continue
        if not records:
            notices.append(f"{path} has no metrics yet; left out")
            continue
        scores = None
        if directory.scores_file().exists():
            try:
                scores = read_scores(path)
            except UserError as error:  # most pictures need no scores
                notices.append(f"{error}; its scores are left out")
        name = _method_name(config) if against else _folder_name(path, config) or _method_name(config)
        runs.append(PlottedRun(path, name, config, records, scores))
    if not runs:
        raise NothingToDraw(
            f"{notices[0].removesuffix('; left out')}: there is nothing to draw" if notices else "no runs"
        )
    first = runs[0]
    for run in runs[1:]:
        if run.tasks != first.tasks:
            raise UserError(
                f"{run.path} was trained on other languages ({_some(run.tasks)}) than {first.path} "
                f"({_some(first.tasks)}); draw them apart"
            )
    groups, pairs = _groups(runs)
    follow = _following(runs, against) if against else set()
    if follow:
        notices.append(f"{', '.join(sorted(follow))}: differ too where {against} does")
    runs = _with_settings(runs, {against, *follow})
    return Runs(_with_names_of_compare(runs) if against else runs, groups, pairs, notices)


def recorded_tasks(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """The tasks that lines of metrics.jsonl name: those that a run was trained or validated on."""
    return {name for line in records for name in (*line.get("alpha", {}), *line.get("valid", {}).get("nll", {}))}


def first_tasks(runs: Runs) -> list[str]:
    """The tasks that `train.pretrain` of one of the runs trains first.

    Raises:
        NothingToDraw: no run has this setting.
    """
    named = [name for run in runs.runs for name in run.config.train.pretrain]
    found = [task for name in named for task in runs.groups.get(name, [name])]
    if not found:
        raise NothingToDraw("no run trains some languages first; see train.pretrain")
    return [task for task in runs.tasks if task in found]


def _folder_name(path: Path, config: Config) -> str:
    """The method as `cats compare` wrote it into the name of the folder; "" for other folders."""
    match = re.fullmatch(r"(.+)-seed(\d+)", as_text(path.resolve().name), re.DOTALL)
    return match[1] if match and int(match[2]) == config.train.seed else ""


def _method_name(config: Config) -> str:
    """The name that follows from the settings, of the form that `cats compare` uses."""
    method, sampling, train = config.method, config.sampling, config.train
    name, restart = method.name, train.restart and not train.pretrain
    if name in ("staged", "restart"):  # the name says it
        return name
    if name == "static" and method.weights == "uniform":
        name = "uniform"
    if name == "static" and method.weights == "tokens":
        if method.token_weights:
            name = "fixed weights"
        elif not (sampling.ratios or sampling.unimax_epochs or sampling.temperature_end or sampling.first_temperature):
            return f"T={sampling.temperature:g}{'r' * restart}"
    return name + ("-staged" if sampling.first_temperature else "-r") * restart


def _following(runs: Sequence[PlottedRun], against: str) -> set[str]:
    """The settings that differ, but among the runs of one name and one value of that setting do not."""
    settings = [(run.method, value_of(run.config, against), _relevant(run.config, {against})) for run in runs]
    differ, free = set(), set()
    for (method, value, mine), (other_method, other_value, rest) in combinations(settings, 2):
        if method == other_method:
            keys = {key for key in FIELDS if mine.get(key) != rest.get(key)}
            differ |= keys
            if value == other_value:
                free |= keys
    return differ - free


def _with_settings(runs: Sequence[PlottedRun], left_out: Collection[str]) -> list[PlottedRun]:
    """The runs, where runs of one name that differ in other settings than the seed have these in their names."""
    found = []
    for run in runs:
        others = [other for other in runs if other.method == run.method]
        mine = _relevant(run.config, left_out)
        rest = [_relevant(other.config, left_out) for other in others]
        differing = [name for name in FIELDS if any(each.get(name) != mine.get(name) for each in rest)]
        if len(differing) > _MOST_SHOWN:
            name = f"{run.method}, {as_text(run.path.resolve().name)}"
        else:
            name = ", ".join(
                [run.method, *(f"{key.partition('.')[2]}={_shown(value_of(run.config, key))}" for key in differing)]
            )
        found.append(replace(run, method=name))
    return found


def _with_names_of_compare(runs: Sequence[PlottedRun]) -> list[PlottedRun]:
    """The runs, where a method has the name that `cats compare` gave its folders, if it has one and no other has it.

    So a variant has the name, and with it the colour, that it has in the other pictures.
    """
    by_method: dict[str, set[str]] = {}
    for run in runs:
        by_method.setdefault(run.method, set()).add(_folder_name(run.path, run.config))
    found = {method: names.pop() for method, names in by_method.items() if len(names) == 1}
    found = {method: name for method, name in found.items() if name and [*found.values()].count(name) == 1}
    return [replace(run, method=found.get(run.method, run.method)) for run in runs]


def _relevant(config: Config, left_out: Collection[str]) -> dict[str, Any]:
    """The settings that make runs different methods."""
    unused = {*_SEEDS, *unused_settings(config), *left_out}
    if not isinstance(config.method.weights, str):
        unused.add("method.weights")
    return {key: value_of(config, key) for key in FIELDS if key not in unused and not key.startswith(_NOT_TRAINING)}


def _groups(runs: Sequence[PlottedRun]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The groups with tasks, and the training pairs of each task, from the first run that has recorded them."""
    tasks = runs[0].tasks
    for run in runs:
        if run.scores is not None:
            return _known(run.scores.members, tasks), run.scores.pairs
    for run in runs:
        for name in ("best", "last"):
            if RunDirectory(run.path).checkpoint(name).exists():
                _, origin, _ = RunDirectory(run.path).read_model(name)
                pairs = {task: origin.corpus[task][0] for task in origin.tasks}
                if tasks <= pairs.keys():
                    return _known(task_groups(pairs, run.config.evaluate), tasks), pairs
    return _known({}, tasks), {}


def _known(members: Mapping[str, Sequence[str]], tasks: set[str]) -> dict[str, list[str]]:
    found = {group: [name for name in names if name in tasks] for group, names in members.items() if group != "all"}
    return {group: names for group, names in found.items() if names} or {"all": sorted(tasks)}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else format_value(value)


def _some(tasks: Iterable[str]) -> str:
    names = sorted(tasks)
    return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")
