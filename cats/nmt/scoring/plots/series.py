"""Series of numbers over the updates, from the lines of metrics.jsonl, and means of several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
Curve = list[tuple[float, float]]  # x (mostly the number of updates) and value of each point, ascending in x


@dataclass(frozen=True)
class Axis:
    """What the horizontal axis of a picture counts.

    Attributes:
        title: its label.
        what: the field of metrics.jsonl that is added up over the tasks; "" for updates.
    """

    title: str
    what: str = ""


UPDATES = Axis("update")
TOKENS = Axis("target tokens", "tokens")


def training_nll(records: Records, task: str) -> Curve:
    """The running mean of a task's training NLL, in nats per target token."""
    return smooth(_points((record["step"], record.get("losses", {}).get(task)) for record in records))


def validation(records: Records, task: str, measure: str) -> Curve:
    """A task's validation scores. measure: nll (nats per target token), bleu or chrf (0 to 100)."""
    tables = ((record["step"], validation_scores(record, measure)) for record in records)
    return _points((step, table.get(task)) for step, table in tables)


def validation_scores(record: Mapping[str, Any], measure: str) -> Mapping[str, float | None]:
    """{task: its validation score} of a line of metrics.jsonl; empty if it has none. measure: nll, bleu or chrf."""
    found = record.get("valid", {}) if measure == "nll" else record.get("scores", {})
    table: Mapping[str, float | None] = found.get(measure, {})
    return table


def alpha_shares(records: Records) -> dict[str, Curve]:
    """{task: running mean of its share of the sum of α}."""
    curves: dict[str, Curve] = {}
    for record in records:
        alpha = {name: value for name, value in record.get("alpha", {}).items() if value is not None}
        total = sum(alpha.values())
        for name, value in alpha.items():
            curves.setdefault(name, []).append((record["step"], value / total if total else 0.0))
    return {name: smooth(points) for name, points in curves.items()}


def seen(records: Records, tasks: Iterable[str], what: str) -> Curve:
    """How much the model was trained on so far, of some tasks together. what: tokens (target tokens) or examples.

    Empty if that was not recorded, as in runs of older versions.
    """
    names, total, curve = list(tasks), 0.0, Curve()
    for record in records:
        if "losses" in record:
            counts = [record.get(what, {}).get(name, 0) for name in names if name in record["losses"]]
            if what not in record or None in counts:
                return []
            total += sum(counts)
            curve.append((record["step"], total))
    return curve


def against(curve: Curve, scale: Curve) -> Curve:
    """The curve over another quantity than the updates: that of `scale`, which starts at 0; as far as `scale` goes."""
    if not scale:
        return []
    steps, amounts = zip((0, 0.0), *scale, strict=True)
    return [(float(np.interp(x, steps, amounts)), value) for x, value in curve if x <= steps[-1]]


def difference(one: Curve, other: Curve) -> Curve:
    """`one`, interpolated at the points of `other`, minus `other`; only where both are known."""
    if not one:
        return []
    xs, values = zip(*one, strict=True)
    return [(x, float(np.interp(x, xs, values)) - value) for x, value in other if xs[0] <= x <= xs[-1]]


def mean(curves: Iterable[Curve], *, common: bool = False) -> Curve:
    """The mean of several curves, which are interpolated, at each x of one of them.

    A curve counts between its first and its last point only: a language that is trained later has no loss before.

    Args:
        common: only where all of the curves are known.
    """
    known = [curve for curve in curves if curve]
    if not known:
        return []
    at = np.unique([x for curve in known for x, _ in curve])
    values = []
    for curve in known:
        xs, ys = zip(*curve, strict=True)
        values.append(np.interp(at, xs, ys, left=np.nan, right=np.nan))
    table = np.array(values)
    counts = (~np.isnan(table)).sum(axis=0)
    kept = counts == len(known) if common else counts > 0
    means = np.nansum(table[:, kept], axis=0) / counts[kept]
    return list(zip(at[kept].tolist(), means.tolist(), strict=True))


def mean_of_seeds(curves: Iterable[Curve]) -> Curve:
    """The mean of the curves of a method's seeds where all are known. Elsewhere it would jump: to fewer seeds.

    If they have no x in common, it is the mean of those that are known.
    """
    known = list(curves)
    return mean(known, common=True) or mean(known)


def smooth(points: Curve) -> Curve:
    """Running mean. The window is 1/20 of the curve, because what is in the few tokens of one update is noisy."""
    half = len(points) // 40
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    at = np.arange(len(points))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(points))
    means = (sums[last] - sums[first]) / (last - first)
    return [(step, float(value)) for (step, _), value in zip(points, means, strict=True)]


def _points(found: Iterable[tuple[float, float | None]]) -> Curve:
    """The points that have a value: one that is not finite is null in the file."""
    return [(x, value) for x, value in found if value is not None]
