"""The results of a comparison as dataclasses: what compare.json, the tables and the picture show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cats.nmt.files import finite_or_none
from cats.nmt.scoring.scores import TITLES, Cell, cell_from_json

METRICS = ("nll", "chrf", "bleu")  # the fields of SeedScores
SIGNIFICANT = 0.05
# Groups of a set with noisy training text, beside those of all sets: without the noisy languages.
CLEAN = {"lores": "lores-clean", "hires": "hires-clean"}
GROUP_TITLES = {**TITLES, "lores-clean": "LoRes, clean", "hires-clean": "HiRes, clean"}


@dataclass(frozen=True)
class SeedScores:
    """The scores of a task or of a group's average, a number for each seed."""

    nll: list[float]
    chrf: list[float]
    bleu: list[float]


@dataclass(frozen=True)
class Difference:
    """How much more chrF a method has than the baseline of its set, in one group.

    Attributes:
        chrf: the difference of the means over the seeds.
        interval: its 95 % interval.
        p: two-sided p-value, not corrected.
        p_holm: the same, corrected (Holm, 1979) over the methods that are compared with the baseline in this group.
    """

    chrf: float
    interval: tuple[float, float]
    p: float
    p_holm: float


@dataclass(frozen=True)
class BleuDifference:
    """The same in BLEU, in one task or group; `p_holm` is corrected over the methods in this task or group."""

    bleu: float
    interval: tuple[float, float]
    p: float
    p_holm: float

    @property
    def is_better(self) -> bool:
        """Whether the method is significantly better than the baseline."""
        return self.bleu > 0 and self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class TrialResult:
    """One trial: what it set, and its validation NLL (mean over the groups). None: it diverged."""

    settings: dict[str, str]
    validation: float | None


@dataclass(frozen=True)
class MethodResult:
    """One method on one set.

    Attributes:
        groups: scores of the groups' averages, "all" included.
        languages: scores of the tasks.
        chrf_interval: 95 % interval of each group's mean chrF.
        seeds: the seeds of the finished runs, in the order of the scores.
        seconds: time of training for each seed; None: not recorded.
        peak_memory: the most bytes that the training held, for each seed; None: not recorded.
        untrained: the seeds whose model is not trained: all its translations are empty, or every group's chrF is below
            that of the nearest-neighbour baseline.
        cpu_seconds: processor time of the training for each seed; None: not recorded.
        missing: the seeds that are planned, but not finished.
        validation: for each seed the validation NLL, mean over the groups; None: not recorded.
        tokens: target tokens of each task that the model was trained on, mean over the seeds; empty: not recorded.
        examples: the same in sentence pairs; empty: one of the runs has not recorded all of them.
        trials: the trials of its settings; empty: there was nothing to choose.
        chosen: the settings that the trials chose.
        differences: for each group, how far it is from the set's baseline; empty for the baseline.
        bleu_differences: the same in BLEU, for each task and group, "all" included.
    """

    groups: dict[str, SeedScores]
    languages: dict[str, SeedScores]
    chrf_interval: dict[str, tuple[float, float]]
    seeds: list[int]
    seconds: list[float | None]
    peak_memory: list[float | None]
    untrained: list[int]
    cpu_seconds: list[float | None] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)
    examples: dict[str, float] = field(default_factory=dict)
    trials: list[TrialResult] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    bleu_differences: dict[str, BleuDifference] = field(default_factory=dict)

    @property
    def mean_validation(self) -> float:
        """The mean over the seeds of `validation`; inf if one is missing."""
        known = [value for value in self.validation if value is not None]
        return sum(known) / len(known) if known and len(known) == len(self.seeds) else math.inf


@dataclass(frozen=True)
class SetResult:
    """All methods on one set.

    Attributes:
        pairs: training pairs of each task.
        groups: tasks of each group that has test lines, without "all".
        nearest_neighbour: the average of the nearest-neighbour baseline for each group, "all" included.
        methods: the result of each method with finished runs.
        baseline: the method that the others are compared with; "" if there is none.
        named_baseline: whether the user has named it; else it is the best on validation text.
        not_run: methods without a finished run.
        nearest_neighbour_tasks: the scores of the nearest-neighbour baseline on each task.
        other_validation: methods that are validated on other lines or pieces than most, so that their validation NLL
            must not be compared with that of the others.
    """

    pairs: dict[str, int]
    groups: dict[str, list[str]]
    nearest_neighbour: dict[str, Cell]
    methods: dict[str, MethodResult]
    baseline: str = ""
    not_run: list[str] = field(default_factory=list)
    nearest_neighbour_tasks: dict[str, Cell] = field(default_factory=dict)
    other_validation: list[str] = field(default_factory=list)
    named_baseline: bool = False


@dataclass(frozen=True)
class Regret:
    """How much chrF a method loses to the best of some methods.

    Attributes:
        worst: the loss in the worst of all sets and groups.
        interval: 95 % interval of `worst`.
        where: the set and the group with the worst loss, such as "ted lores".
        cells: the loss for each set and group.
        above: how much higher `worst` is than the lowest one of all methods.
        above_interval: 95 % interval of `above`, for the same other method; 0 for the lowest itself.
    """

    worst: float
    interval: tuple[float, float]
    where: str
    cells: dict[str, float]
    above: float = 0.0
    above_interval: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Comparison:
    """Everything that compare.json, the tables and the picture show.

    Attributes:
        seeds: all seeds, sorted.
        settings: configuration of the first run, as TOML.
        sets: the result for each set.
        regret: the regret of each method against the best fixed temperature (T=.. without a restart); empty if none was
            compared. Methods that lack a set have no regret.
        regret_of_all: the regret against the best of all compared methods.
    """

    seeds: list[int]
    settings: str
    sets: dict[str, SetResult]
    regret: dict[str, Regret]
    regret_of_all: dict[str, Regret] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of compare.json, where the nearest-neighbour baseline is called "lookup"."""
        sets = {
            name: {
                "pairs": result.pairs,
                "groups": result.groups,
                "lookup": {group: cell.measures() for group, cell in result.nearest_neighbour.items()},
                "lookup_languages": {task: cell.measures() for task, cell in result.nearest_neighbour_tasks.items()},
                "methods": {method: asdict(scores) for method, scores in result.methods.items()},
                "baseline": result.baseline,
                "not_run": result.not_run,
                "other_validation": result.other_validation,
                "named_baseline": result.named_baseline,
            }
            for name, result in self.sets.items()
        }
        content = {"seeds": self.seeds, "settings": self.settings, "sets": sets}
        for name in ("regret", "regret_of_all"):
            content[name] = {method: asdict(value) for method, value in getattr(self, name).items()}
        found: dict[str, Any] = finite_or_none(content)
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`. Files of older versions may lack fields that have a default.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: `content` is not what `to_json` returns.
        """
        return cls(
            content["seeds"],
            content["settings"],
            {name: _set_from_json(values) for name, values in content["sets"].items()},
            *(
                {method: _regret_from_json(values) for method, values in content.get(name, {}).items()}
                for name in ("regret", "regret_of_all")
            ),
        )


def _set_from_json(content: Mapping[str, Any]) -> SetResult:
    values = {name: value for name, value in content.items() if name not in ("lookup", "lookup_languages")}
    for name, key in ("nearest_neighbour", "lookup"), ("nearest_neighbour_tasks", "lookup_languages"):
        values[name] = {cell: cell_from_json(measures) for cell, measures in content.get(key, {}).items()}
    values["methods"] = {method: _method_from_json(result) for method, result in content["methods"].items()}
    return SetResult(**values)


def _method_from_json(content: Mapping[str, Any]) -> MethodResult:
    values = dict(content)
    for name in ("groups", "languages"):
        values[name] = {cell: SeedScores(**scores) for cell, scores in content[name].items()}
    values["chrf_interval"] = {group: _pair(interval) for group, interval in content["chrf_interval"].items()}
    values["trials"] = [TrialResult(**trial) for trial in content.get("trials", ())]
    for name, kind in ("differences", Difference), ("bleu_differences", BleuDifference):
        values[name] = {
            cell: kind(**{**found, "interval": _pair(found["interval"])})
            for cell, found in content.get(name, {}).items()
        }
    return MethodResult(**values)


def _regret_from_json(content: Mapping[str, Any]) -> Regret:
    pairs = {name: _pair(content[name]) for name in ("interval", "above_interval") if name in content}
    return Regret(**{**content, **pairs})


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return low, high
