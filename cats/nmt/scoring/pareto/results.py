"""The results of `cats pareto` as dataclasses: what front.json, the tables and the picture show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.files import as_text, finite_or_none, read_file

FILE = "front.json"  # in the folder of `cats pareto`
STATIC = "static"  # the method whose front the others are compared with: constant sampling ratios
NLL = "nll"
METRICS = {NLL: "validation NLL", "bleu": "BLEU", "chrf": "chrF"}
DIGITS = {NLL: 3, "bleu": 1, "chrf": 1}
_LARGEST = 1e100  # of the numbers in front.json; with much larger ones, means and pictures overflow


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
class LostPoint:
    """A method at one sampling ratio where no seed has a score.

    Attributes:
        ratio, missing, diverged: see `Point`.
    """

    method: str
    ratio: float | None
    missing: list[int]
    diverged: list[int]


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
            of all points, a tenth of the range further away; (0, 0) without a score.
        methods: those with scores. Static ratios come first.
        curve: the front of static ratios between the tested ones, (low, high) in the order of the ratios; empty without
            static ratios.
        not_run: methods without a score.
        lost: the points without a score, also those of the methods in `not_run`.
    """

    set: str
    low: Side
    high: Side
    reference: tuple[float, float]
    methods: dict[str, MethodFront]
    curve: list[tuple[float, float]]
    not_run: list[str] = field(default_factory=list)
    lost: list[LostPoint] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The set and the two sides."""
        return f"{self.set}: {self.low.name} and {self.high.name}"


@dataclass(frozen=True)
class Fronts:
    """Everything that front.json, the tables and the picture show.

    Attributes:
        metric: a name in METRICS.
        seeds: all seeds, sorted.
        settings: the configuration of the first run, as TOML.
        fronts: all that are planned. At least one has a score.
    """

    metric: str
    seeds: list[int]
    settings: str
    fronts: list[Front]

    @property
    def drawn(self) -> list[Front]:
        """Those with a score."""
        return [front for front in self.fronts if front.methods]

    def to_json(self) -> dict[str, Any]:
        """The content of front.json."""
        found: dict[str, Any] = finite_or_none(asdict(self))
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fronts:
        """The inverse of `to_json`. Files of earlier versions do not name the lost points.

        Raises:
            ValueError, OverflowError, KeyError, TypeError, AttributeError: `content` is not what `to_json` returns.
        """
        if content["metric"] not in METRICS:
            raise ValueError(f"{content['metric']!r} is not a metric")
        fronts = [*map(_front, content["fronts"])]
        if not fronts:
            raise ValueError("no front")
        if not any(front.methods for front in fronts):
            raise ValueError("a front needs a method")
        return cls(content["metric"], _integers(content["seeds"]), as_text(content["settings"]), fronts)


def read_fronts(folder: Path) -> Fronts:
    """The results in a folder of `cats pareto`.

    Raises:
        UserError: front.json is missing or damaged.
    """
    path = folder / FILE
    try:
        return Fronts.from_json(json.loads(read_file(path)))
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is damaged or of another version; make it again with: cats pareto --only-finished"
        ) from None


def _front(content: Mapping[str, Any]) -> Front:
    low, high = (Side(as_text(side["name"]), _texts(side["tasks"])) for side in (content["low"], content["high"]))
    methods = {as_text(name): _method(found) for name, found in content["methods"].items()}
    if STATIC in methods and any(point.ratio is None for point in methods[STATIC].points):
        raise ValueError("a static point needs its ratio")
    return Front(
        set=as_text(content["set"]),
        low=low,
        high=high,
        reference=_pair(content["reference"]),
        methods=methods,
        curve=[*map(_pair, content["curve"])],
        not_run=_texts(content["not_run"]),
        lost=[*map(_lost_point, content.get("lost", []))],
    )


def _method(content: Mapping[str, Any]) -> MethodFront:
    points = [*map(_point, content["points"])]
    if not points:
        raise ValueError("a method needs a point")
    return MethodFront(
        points=points,
        hypervolume=_number(content["hypervolume"]),
        gain=_optional(_estimate, content["gain"]),
        beyond=_optional(bool, content["beyond"]),
    )


def _point(content: Mapping[str, Any]) -> Point:
    point = Point(
        ratio=_optional(_number, content["ratio"]),
        seeds=_integers(content["seeds"]),
        low=_numbers(content["low"]),
        high=_numbers(content["high"]),
        missing=_integers(content["missing"]),
        diverged=_integers(content["diverged"]),
        chosen={as_text(name): as_text(value) for name, value in content["chosen"].items()},
        dominated_by=_texts(content["dominated_by"]),
        margin=_optional(_estimate, content["margin"]),
        outside=bool(content["outside"]),
    )
    if not len(point.seeds) == len(point.low) == len(point.high) > 0:
        raise ValueError("a point needs the scores of both sides for each of its seeds")
    return point


def _lost_point(content: Mapping[str, Any]) -> LostPoint:
    return LostPoint(
        method=as_text(content["method"]),
        ratio=_optional(_number, content["ratio"]),
        missing=_integers(content["missing"]),
        diverged=_integers(content["diverged"]),
    )


def _estimate(content: Mapping[str, Any]) -> Estimate:
    return Estimate(_number(content["value"]), *(_optional(_number, content[end]) for end in ("low", "high")))


def _optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _number(value: Any) -> float:
    number = float(value)
    if not abs(number) < _LARGEST:
        raise ValueError(f"{number} is no score")
    return number


def _numbers(values: Iterable[Any]) -> list[float]:
    return [*map(_number, values)]


def _integers(values: Iterable[Any]) -> list[int]:
    return [*map(int, values)]


def _texts(values: Iterable[Any]) -> list[str]:
    return [*map(as_text, values)]


def _pair(values: Iterable[Any]) -> tuple[float, float]:
    low, high = _numbers(values)
    return low, high
