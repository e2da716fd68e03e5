"""The scores of a run as dataclasses, and the file scores.json that holds them.

In scores.json tasks are called "languages", and the nearest-neighbour baseline is called "lookup". These keys stay as
they are, so that files of all versions can be read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cats.nmt.errors import UserError, command
from cats.nmt.files import read_checked_json, write_checked_json
from cats.nmt.quality import Quality

MOST_NATS = 700  # per token: e^700 is near the largest float64
# The groups of tasks that scores are averaged over, with their titles.
TITLES = {"all": "All", "lores": "LoRes", "midres": "MidRes", "hires": "HiRes"}
# The measures of a cell, by their names in scores.json and in their order there.
METRICS = ("bleu", "bleu_13a", "chrf", "chrfpp", "spbleu", "nll", "perplexity", "off_target", "off_target_references")


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds the references.

    Attributes:
        nll: nats per target token. None: no lines, or not finite.
    """

    nll: float | None

    @property
    def perplexity(self) -> float | None:
        return None if self.nll is None else math.exp(min(self.nll, MOST_NATS))


@dataclass(frozen=True)
class OffTarget:
    """Shares, 0 to 1, of lines that are identified as another language than the target language.

    Attributes:
        share: the share of the translations that are off-target.
        references: the same share of the references, which is the error rate of the identification.
    """

    share: float | None
    references: float | None


@dataclass(frozen=True)
class Cell:
    """All measures of some translations, or the average of a group's cells.

    Attributes:
        quality: scores against the references.
        likelihood: None for a system without likelihoods, such as the nearest-neighbour baseline.
        off_target: None where the language was not identified.
    """

    quality: Quality = field(default_factory=Quality)
    likelihood: Likelihood | None = None
    off_target: OffTarget | None = None

    def measures(self) -> dict[str, float | None]:
        """The measures by their names in METRICS, without those that the system does not have."""
        found = asdict(self.quality)
        if self.likelihood is not None:
            found |= {"nll": self.likelihood.nll, "perplexity": self.likelihood.perplexity}
        if self.off_target is not None:
            found |= {"off_target": self.off_target.share, "off_target_references": self.off_target.references}
        return found

    def get(self, metric: str) -> float | None:
        """One of METRICS; None if there is no number."""
        return self.measures().get(metric)


@dataclass(frozen=True)
class TaskCell(Cell):
    """The measures of one task.

    Attributes:
        lines: how many lines the scores in `quality` are computed on.
    """

    lines: int = 0


@dataclass(frozen=True)
class SystemScores:
    """The scores of one system: the model, or the nearest-neighbour baseline.

    Attributes:
        tasks: a cell for each task.
        groups: macro-averages over the tasks of "all", "lores", "midres" (if there is one) and "hires".
    """

    tasks: dict[str, TaskCell]
    groups: dict[str, Cell]


@dataclass(frozen=True)
class Stratum:
    """The scores of the model and of the nearest-neighbour baseline on the test lines of one stratum."""

    model: SystemScores
    nearest_neighbour: SystemScores


@dataclass(frozen=True)
class RunFacts:
    """What was scored, and how it was trained.

    Attributes:
        corpus: name of the corpus.
        split: train, valid or test.
        checkpoint: best, last, average, ...
        method: method.name of the configuration.
        temperature: sampling.temperature of the configuration.
        seed: train.seed of the configuration.
        steps: updates of the model.
        seconds: time of training. None: not recorded.
        cpu_seconds: processor time of the main process in it. None: not recorded.
        tokens_per_second: target tokens of training per second. None: not recorded.
        peak_memory: the most bytes that the training held. None: not recorded.
    """

    corpus: str
    split: str
    checkpoint: str
    method: str
    temperature: float
    seed: int
    steps: int
    seconds: float | None
    tokens_per_second: float | None
    peak_memory: float | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Scores:
    """Everything that scores.json holds.

    Attributes:
        model: the model's scores. Quality is measured on the headline stratum, likelihood on all lines.
        nearest_neighbour: the scores of the nearest-neighbour baseline.
        pairs: training pairs of each task.
        members: names of the tasks of each group.
        headline: stratum that the headline scores are computed on. None: all lines.
        strata: scores of each stratum. Empty if the test lines have none.
        signatures: for each metric of `Quality`, sacreBLEU's signature by task.
        zero_shot: cells of directions without training text, which are not part of the averages.
        run: what was scored.
        files: the SHA-256 of each file in hyp/, by its name. Empty in files of older versions.
    """

    model: SystemScores
    nearest_neighbour: SystemScores
    pairs: dict[str, int]
    members: dict[str, list[str]]
    headline: str | None
    strata: dict[str, Stratum]
    signatures: dict[str, dict[str, str]]
    zero_shot: dict[str, TaskCell]
    run: RunFacts
    files: dict[str, str] = field(default_factory=dict)

    @property
    def scored_tasks(self) -> list[str]:
        """The tasks with lines to score."""
        return [name for name, cell in self.model.tasks.items() if cell.lines]

    @property
    def gains(self) -> dict[str, float | None]:
        """For each group, the chrF above that of the nearest-neighbour baseline. None if either is missing."""
        ours, theirs = self.model.groups, self.nearest_neighbour.groups
        chrf = {group: (cell.quality.chrf, theirs[group].quality.chrf) for group, cell in ours.items()}
        return {group: None if a is None or b is None else a - b for group, (a, b) in chrf.items()}

    @property
    def is_below_baseline(self) -> bool:
        """Whether every group's chrF is below that of the nearest-neighbour baseline: the model is not trained."""
        known = [gain for gain in self.gains.values() if gain is not None]
        return bool(known) and max(known) < 0

    def bleu_tokenizer(self, task: str) -> str | None:
        """The tokenizer that BLEU was computed with, as its signature names it. None: there is no signature."""
        parts = self.signatures.get("bleu", {}).get(task, "").split("|")
        return next((part.removeprefix("tok:") for part in parts if part.startswith("tok:")), None)


def read_scores(run: Path, name: str = "scores.json") -> Scores:
    """Reads the scores of a run from scores.json, or from another file of scores.

    Raises:
        UserError: the run is not evaluated, or the file is damaged.
    """
    try:
        return from_json(read_checked_json(run / name))
    except FileNotFoundError:
        raise UserError(f"{run} holds no {name}; {_how_to_score(run)}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(run, name) from None


def _how_to_score(run: Path) -> str:
    """What to do about a run that has no scores."""
    from cats.nmt.training.run import RunDirectory  # imported here because it imports torch

    with contextlib.suppress(UserError):  # there is no model yet, or it is damaged
        counts = RunDirectory(run).read_model()[1].corpus.values()
        if counts and not any(test for _, _, test in counts):
            return f"its corpus has no test lines, so it cannot be scored; to see its losses: cats plot {run}"
    return f"make it with: {command('evaluate', run)}"


def damaged(run: Path, name: str = "scores.json") -> UserError:
    """The error to raise for a file of scores that does not hold what `write_scores` writes."""
    return UserError(f"{run}/{name} is damaged or of an older version; make it again with: {command('evaluate', run)}")


def write_scores(path: Path, scores: Scores) -> None:
    """Writes scores as JSON, such as scores.json.

    Raises:
        UserError: the file cannot be written.
    """
    write_checked_json(path, to_json(scores), indent=2)


def to_json(scores: Scores) -> dict[str, Any]:
    """The content of scores.json."""
    run = asdict(scores.run)
    if not math.isfinite(scores.run.temperature):
        run["temperature"] = "inf"
    return {
        "languages": {
            name: {**_task_to_json(cell), "pairs": scores.pairs[name]} for name, cell in scores.model.tasks.items()
        },
        "groups": {
            group: {**cell.measures(), "languages": scores.members[group]}
            for group, cell in scores.model.groups.items()
        },
        "lookup": _system_to_json(scores.nearest_neighbour),
        "headline": scores.headline,
        "beats_lookup": {group: None if gain is None else gain > 0 for group, gain in scores.gains.items()},
        "strata": {
            name: {**_system_to_json(stratum.model), "lookup": _system_to_json(stratum.nearest_neighbour)}
            for name, stratum in scores.strata.items()
        },
        "signatures": scores.signatures,
        "zero_shot": {name: _task_to_json(cell) for name, cell in scores.zero_shot.items()},
        **run,
        "files": scores.files,
    }


def from_json(content: Mapping[str, Any]) -> Scores:
    """The inverse of `to_json`. Older files may lack zero-shot directions and some metrics.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: `content` is not what `to_json` returns.
    """
    model = _system_from_json(content)
    members = {_text(group): [*map(_text, cell["languages"])] for group, cell in content["groups"].items()}
    named = {name for names in members.values() for name in names}
    if not {"all"} <= members.keys() <= TITLES.keys() or not named <= model.tasks.keys():
        raise ValueError("the groups do not belong to the tasks")
    return Scores(
        model=model,
        nearest_neighbour=_baseline_from_json(content["lookup"], model),
        pairs={name: _count(cell["pairs"]) for name, cell in content["languages"].items()},
        members=members,
        headline=None if content["headline"] is None else _text(content["headline"]),
        strata={name: _stratum_from_json(stratum, model) for name, stratum in content["strata"].items()},
        signatures={
            metric: {name: _text(signature) for name, signature in by_task.items()}
            for metric, by_task in content["signatures"].items()
        },
        zero_shot={name: _task_from_json(cell) for name, cell in content.get("zero_shot", {}).items()},
        run=RunFacts(
            corpus=_text(content["corpus"]),
            split=_text(content["split"]),
            checkpoint=_text(content["checkpoint"]),
            method=_text(content["method"]),
            temperature=math.inf if content["temperature"] == "inf" else float(_number(content["temperature"]) or 0),
            seed=_count(content["seed"]),
            steps=_count(content["steps"]),
            seconds=_number(content["seconds"]),
            tokens_per_second=_number(content["tokens_per_second"]),
            peak_memory=_number(content.get("peak_memory")),
            cpu_seconds=_number(content.get("cpu_seconds")),
        ),
        files={name: _text(digest) for name, digest in content.get("files", {}).items()},
    )


def _task_to_json(cell: TaskCell) -> dict[str, Any]:
    return {**asdict(cell.quality), "lines": cell.lines, **cell.measures()}  # a repeated key keeps its first place


def _system_to_json(system: SystemScores) -> dict[str, Any]:
    return {
        "languages": {name: _task_to_json(cell) for name, cell in system.tasks.items()},
        "groups": {group: cell.measures() for group, cell in system.groups.items()},
    }


def _system_from_json(content: Mapping[str, Any]) -> SystemScores:
    return SystemScores(
        {name: _task_from_json(cell) for name, cell in content["languages"].items()},
        {group: cell_from_json(cell) for group, cell in content["groups"].items()},
    )


def _baseline_from_json(content: Mapping[str, Any], model: SystemScores) -> SystemScores:
    """The scores of the baseline, with empty cells where it was not computed."""
    found = _system_from_json(content)
    return SystemScores(
        {name: found.tasks.get(name, TaskCell(lines=cell.lines)) for name, cell in model.tasks.items()},
        {group: found.groups.get(group, Cell()) for group in model.groups},
    )


def _stratum_from_json(content: Mapping[str, Any], whole: SystemScores) -> Stratum:
    model = _system_from_json(content)
    if (model.tasks.keys(), model.groups.keys()) != (whole.tasks.keys(), whole.groups.keys()):
        raise ValueError("a stratum has other tasks or groups")
    return Stratum(model, _baseline_from_json(content["lookup"], model))


def cell_from_json(content: Mapping[str, Any]) -> Cell:
    """The inverse of `Cell.measures`. Other keys are ignored.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: `content` is not what `Cell.measures` returns.
    """
    return Cell(*_measures_from_json(content))


def _task_from_json(content: Mapping[str, Any]) -> TaskCell:
    return TaskCell(*_measures_from_json(content), lines=_count(content["lines"]))


def _measures_from_json(content: Mapping[str, Any]) -> tuple[Quality, Likelihood | None, OffTarget | None]:
    numbers = {name: _number(value) for name, value in content.items() if name in METRICS}
    return (
        Quality(*(numbers.get(name) for name in ("bleu", "bleu_13a", "chrf", "chrfpp", "spbleu"))),
        Likelihood(numbers["nll"]) if "nll" in numbers else None,
        OffTarget(numbers["off_target"], numbers["off_target_references"]) if "off_target" in numbers else None,
    )


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15):
        raise ValueError(f"{value!r} is not a score")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is not a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value
