"""The tables of `cats pareto`: front.md, and the scores of each run as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from cats.nmt.scoring.pareto.results import (
    DIGITS,
    METRICS,
    STATIC,
    Estimate,
    Front,
    Fronts,
    LostPoint,
    MethodFront,
    Point,
)
from cats.nmt.scoring.tables import aligned, spread

_MOST_SHOWN = 2  # of the points that dominate one


def fronts_tables(fronts: Fronts) -> str:
    """The content of front.md: for each front a table of the methods and a table of their points."""
    return "\n".join(line for front in fronts.fronts for line in _front(front, fronts))


def fronts_csv(fronts: Fronts) -> str:
    """The content of front.csv: a row for each set, pair of sides, method, ratio and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "low_side", "high_side", "method", "ratio", "seed", "metric", "low", "high"])
    for front in fronts.fronts:
        for method, found in front.methods.items():
            for point in found.points:
                where = [front.set, front.low.name, front.high.name, method, "" if point.ratio is None else point.ratio]
                for seed, low, high in zip(point.seeds, point.low, point.high, strict=True):
                    writer.writerow([*where, seed, fronts.metric, low, high])
    return text.getvalue()


def _front(front: Front, fronts: Fronts) -> Iterator[str]:
    low, metric = front.low.name, METRICS[fronts.metric]
    digits = DIGITS[fronts.metric]
    yield f"## {front.title}, {metric}"
    yield ""
    for side in (front.low, front.high):
        if side.tasks != [side.name]:
            yield f"{side.name} is the mean of {', '.join(side.tasks)}."
    if not front.methods:
        yield "No run has a score:"
        yield ""
        yield from (f"- {lost.method}, ratio {_ratio(lost)}{_without_score(lost)}" for lost in front.lost)
        yield ""
        return
    yield from _explanation(front, fronts)
    yield ""
    yield _methods(front, digits)
    yield ""
    if front.not_run:
        yield f"Failed, diverged or not run: {', '.join(front.not_run)}."
        yield ""
    yield f"The points: mean ± standard deviation over the seeds. *Ratio*: share of the sentences that are of {low}."
    yield ""
    yield _points(front, digits)
    yield ""
    if any(point.outside for found in front.methods.values() for point in found.points):
        yield "† Better on one side than every tested static ratio, where nothing is known of the front. Such a point"
        yield "is beyond the front only if it is also better than the end of the front on the other side."
        yield ""


def _explanation(front: Front, fronts: Fronts) -> Iterator[str]:
    digits = DIGITS[fronts.metric]
    x, y = (f"{value:.{digits}f}" for value in front.reference)
    yield f"*Hypervolume*: the area that the points of a method dominate, up to the point ({x}, {y})."
    if STATIC not in front.methods:
        yield "No static ratio has a score, so that nothing is compared with their front."
        return
    yield "*Gain*: how much larger it is than that of static ratios. *Margin*: by how much a point is beyond the front"
    yield "of static ratios, that is, how much it could lose on both sides until a static ratio is as good on both."
    yield "Between the tested ratios, the front is interpolated. Intervals are 95 %, by bootstrap over the seeds. Those"
    yield "of the margins of a method hold for all of its points at once; it is beyond the front if one lies above 0."
    yield "*Surest margin*: that of the point whose interval has the highest lower end; other margins may be larger."
    if len(fronts.seeds) == 1:
        yield "With one seed there are no intervals, and nothing can be said about other seeds."


def _methods(front: Front, digits: int) -> str:
    rows = [["method", "beyond the front", "surest margin", "at ratio", "hypervolume", "gain", "not dominated"]]
    for name, found in front.methods.items():
        best = _best(found)
        rows.append(
            [
                name,
                "" if name == STATIC else {None: "n/a", True: "yes", False: "not shown"}[found.beyond],
                "" if best is None else _estimate(best.margin, digits),
                "" if best is None or best.ratio is None else f"{best.ratio:g}",
                _rounded(found.hypervolume, digits),
                _estimate(found.gain, digits),
                f"{sum(not point.dominated_by for point in found.points)} of {len(found.points)}",
            ]
        )
    return aligned(rows, left=2)


def _best(found: MethodFront) -> Point | None:
    """The point that shows best whether a method is beyond the front: that whose interval has the highest lower end."""

    def lower_end(point: Point) -> float:
        assert point.margin is not None
        return point.margin.value if point.margin.low is None else point.margin.low

    compared = [point for point in found.points if point.margin is not None]
    return max(compared, key=lower_end) if compared else None


def _points(front: Front, digits: int) -> str:
    tuned = any(point.chosen for found in front.methods.values() for point in found.points)
    rows = [
        ["method", "ratio", front.low.name, front.high.name, "margin", "dominated by", *(["chosen"] if tuned else [])]
    ]
    for name, found in front.methods.items():
        for point in found.points:
            outside = " †" if point.outside else ""
            shown = point.dominated_by[:_MOST_SHOWN]
            more = len(point.dominated_by) - len(shown)
            rows.append(
                [
                    name + _without_score(point),
                    _ratio(point),
                    spread(point.low, digits),
                    spread(point.high, digits),
                    _estimate(point.margin, digits) + outside,
                    ", ".join(shown) + (f" and {more} more" if more else ""),
                    *([", ".join(f"{key}={value}" for key, value in point.chosen.items())] if tuned else []),
                ]
            )
    rows += [[lost.method + _without_score(lost), _ratio(lost), *[""] * (len(rows[0]) - 2)] for lost in front.lost]
    return aligned(rows, left=1)


def _without_score(point: Point | LostPoint) -> str:
    """The seeds that have no score, and why."""
    return "".join(
        f" ({what}: seed {', '.join(map(str, seeds))})"
        for what, seeds in (("diverged", point.diverged), ("missing", point.missing))
        if seeds
    )


def _ratio(point: Point | LostPoint) -> str:
    return "own" if point.ratio is None else f"{point.ratio:g}"


def _estimate(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return _signed(estimate.value, digits)
    return f"{_signed(estimate.value, digits)} ({_signed(estimate.low, digits)} to {_signed(estimate.high, digits)})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}"


def _rounded(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"
