"""The results of `cats pareto` as dataclasses: what front.json, the tables and the picture show."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.files import finite_or_none, read_file

FILE = "front.json"  # in the folder of `cats pareto`
STATIC = "static"  # the method whose front the others are compared with: constant sampling ratios
NLL = "nll"
METRICS = {NLL: "validation NLL", "bleu": "BLEU", "chrf": "chrF"}
DIGITS = {NLL: 3, "bleu": 1, "chrf": 1}


def is_loss(metric: str) -> bool:
    """Whether lower values are better."""
    return metric == NLL


@dataclass(frozen=True)
class Side:
    """One of the two axes: a task, or some tasks whose mean score is drawn."""

    name: str
    tasks: list[str]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval. None: with a single seed there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A method at one sampling ratio.

    Attributes:
        ratio: the share of the sentences that are of the low side. None: the method has its own mixture.
        seeds: those with a score, in the order of the scores.
        low, high: the scores of the two sides, one for each seed.
        missing: the seeds that are planned, but not finished.
        diverged: the seeds whose training diverged, or that have no score.
        chosen: the settings that the trials chose; empty: there was nothing to choose.
        dominated_by: the points that are better on both sides (means over the seeds), as METHOD or METHOD RATIO.
        margin: how far it is beyond the front of static ratios, see ``cats.nmt.scoring.pareto.front.margins``, in the
            unit of the metric. None for static ratios themselves.
        outside: whether it is better on one side than static ratios at any tested ratio.
    """

    ratio: float | None
    seeds: list[int]
    low: list[float]
    high: list[float]
    missing: list[int] = field(default_factory=list)
    diverged: list[int] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    dominated_by: list[str] = field(default_factory=list)
    margin: Estimate | None = None
    outside: bool = False

    @property
    def mean(self) -> tuple[float, float]:
        """The scores of the low and the high side, means over the seeds."""
        return float(np.mean(self.low)), float(np.mean(self.high))


@dataclass(frozen=True)
class MethodFront:
    """The points of one method.

    Attributes:
        points: those with scores, in the order of their ratios.
        hypervolume: the area that its points dominate within the reference point.
        gain: how much larger that is than the hypervolume of static ratios. None unless both have the same ratios.
        beyond: whether a point is beyond the front of static ratios. None: not known, with a single seed or no front.
    """

    points: list[Point]
    hypervolume: float
    gain: Estimate | None = None
    beyond: bool | None = None


@dataclass(frozen=True)
class Front:
    """The fronts of all methods for two sides of one set.

    Attributes:
        reference: the point that hypervolumes are measured from, scores of the low and the high side: the worst scores
            of all points, a tenth of the range further away.
        methods: those with scores. Static ratios come first.
        curve: the front of static ratios between the tested ones, (low, high) in the order of the ratios; empty without
            static ratios.
        not_run: methods without a score.
    """

    set: str
    low: Side
    high: Side
    reference: tuple[float, float]
    methods: dict[str, MethodFront]
    curve: list[tuple[float, float]]
    not_run: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fronts:
    """Everything that front.json, the tables and the picture show.

    Attributes:
        metric: a name in METRICS.
        seeds: all seeds, sorted.
        settings: the configuration of the first run, as TOML.
    """

    metric: str
    seeds: list[int]
    settings: str
    fronts: list[Front]

    def to_json(self) -> dict[str, Any]:
        """The content of front.json."""
        found: dict[str, Any] = finite_or_none(asdict(self))
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fronts:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: `content` is not what `to_json` returns.
        """
        if content["metric"] not in METRICS:
            raise ValueError(f"{content['metric']!r} is not a metric")
        seeds = [*map(int, content["seeds"])]
        return cls(content["metric"], seeds, str(content["settings"]), [*map(_front, content["fronts"])])


def read_fronts(folder: Path) -> Fronts:
    """The results in a folder of `cats pareto`.

    Raises:
        UserError: front.json is missing or damaged.
    """
    path = folder / FILE
    try:
        return Fronts.from_json(json.loads(read_file(path)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is damaged or of another version; make it again with: cats pareto --only-finished"
        ) from None


def _front(content: Mapping[str, Any]) -> Front:
    low, high = (Side(str(side["name"]), [*map(str, side["tasks"])]) for side in (content["low"], content["high"]))
    methods = {str(name): _method(found) for name, found in content["methods"].items()}
    curve = [*map(_pair, content["curve"])]
    return Front(str(content["set"]), low, high, _pair(content["reference"]), methods, curve, list(content["not_run"]))


def _method(content: Mapping[str, Any]) -> MethodFront:
    points = [*map(_point, content["points"])]
    return MethodFront(points, float(content["hypervolume"]), _optional(_estimate, content["gain"]), content["beyond"])


def _point(content: Mapping[str, Any]) -> Point:
    scores = {side: [*map(float, content[side])] for side in ("low", "high")}
    if not len(content["seeds"]) == len(scores["low"]) == len(scores["high"]) > 0:
        raise ValueError("a point needs the scores of both sides for each of its seeds")
    changed = {"ratio": _optional(float, content["ratio"]), "margin": _optional(_estimate, content["margin"])}
    return Point(**{**content, **scores, **changed})


def _estimate(content: Mapping[str, Any]) -> Estimate:
    return Estimate(float(content["value"]), *(_optional(float, content[end]) for end in ("low", "high")))


def _optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, values)
    return low, high
