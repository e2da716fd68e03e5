"""Trade-off fronts of two losses: which points are on a front, its hypervolume, and how far a point is beyond one.

A point is a pair of numbers, and lower is better in both. Scores that should be high, such as BLEU, are negated before.
A point dominates another one if it is at least as good in both numbers and better in one. The front of some points are
those that no other point dominates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def dominated(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which points are dominated by one of the others.

    Args:
        points: (n, 2).
        others: (m, 2). A point that is also among them does not dominate itself.

    Returns:
        (n,) bool.
    """
    ours, theirs = points[:, None, :], others[None, :, :]
    better = (theirs <= ours).all(-1) & (theirs < ours).any(-1)
    return np.asarray(better.any(-1))


def hypervolume(points: np.ndarray, reference: Sequence[float]) -> float:
    """The area of what some points dominate within the reference point (Zitzler & Thiele, 1998).

    Args:
        points: (n, 2). Those that are not better than the reference in both numbers add nothing.
        reference: the point up to which the area counts. Areas are comparable for the same reference only.
    """
    right, bottom = map(float, reference)  # what is left of the rectangle: its upper side sinks from point to point
    area = 0.0
    for x, y in sorted(map(tuple, points)):
        if x < right and y < bottom:
            area += (right - x) * (bottom - y)
            bottom = y
    return float(area)


def interpolate(ratios: Sequence[float], points: np.ndarray, steps: int) -> np.ndarray:
    """The curve through points that were measured at some ratios: what the ratios between them would give.

    Both numbers are interpolated over the log-odds of the ratio by monotone cubics (Fritsch & Butland, 1984): between
    two ratios a number never leaves the range of their two values. Straight lines between the points would lie above a
    front, which is convex, and call methods better that are on it.

    Args:
        ratios: n ascending numbers between 0 and 1.
        points: (.., n, 2).
        steps: into how many pieces the curve is divided between two ratios.

    Returns:
        (.., (n - 1) steps + 1, 2): points on the curve. They include the given ones.
    """
    share = np.asarray(ratios, dtype=np.float64)
    at = np.log(share / (1 - share))
    if len(at) == 1:
        return points
    width = np.diff(at)[:, None]
    slope = np.diff(points, axis=-2) / width
    ends = _slopes(width, slope)
    t = np.arange(steps)[:, None] / steps  # the position between two ratios
    first, last = points[..., :-1, None, :], points[..., 1:, None, :]
    begin, end = (width * each for each in (ends[..., :-1, :], ends[..., 1:, :]))
    curve = (
        (1 + 2 * t) * (1 - t) ** 2 * first
        + t * (1 - t) ** 2 * begin[..., None, :]
        + t**2 * (3 - 2 * t) * last
        + t**2 * (t - 1) * end[..., None, :]
    )
    flat = curve.reshape(*points.shape[:-2], -1, 2)
    return np.concatenate([flat, points[..., -1:, :]], axis=-2)


def _slopes(width: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The derivative of a monotone cubic interpolation at its n points.

    Inside it is a weighted harmonic mean of the slopes on both sides, or 0 if they have different signs. At the ends it
    is that of a parabola, limited so that the curve stays monotone.

    Args:
        width: (n - 1, 1) distances.
        slope: (.., n - 1, 2) between the points.

    Returns:
        (.., n, 2).
    """
    if len(width) == 1:
        return np.concatenate([slope, slope], axis=-2)
    left, right = slope[..., :-1, :], slope[..., 1:, :]
    weights = width[:-1] + 2 * width[1:], 2 * width[:-1] + width[1:]
    same = left * right > 0
    mean = sum(weights) / sum(w / np.where(same, each, 1.0) for w, each in zip(weights, (left, right), strict=True))
    inside = np.where(same, mean, 0.0)

    def at_end(nearest: int, next_one: int) -> np.ndarray:
        near, far = slope[..., nearest, :], slope[..., next_one, :]
        a, b = width[nearest], width[next_one]
        parabola = ((2 * a + b) * near - a * far) / (a + b)
        limited = np.where((near * far <= 0) & (np.abs(parabola) > 3 * np.abs(near)), 3 * near, parabola)
        return np.where(parabola * near > 0, limited, 0.0)[..., None, :]

    return np.concatenate([at_end(0, 1), inside, at_end(-1, -2)], axis=-2)


def margins(points: np.ndarray, front: np.ndarray) -> np.ndarray:
    """How far each point is beyond a front: the amount by which both of its numbers must grow until the front has it.

    That is the additive epsilon indicator of a point (Zitzler et al., 2003), min over a on the front of max_i(a_i -
    p_i). It is positive beyond the front and negative behind it, in the unit of the numbers.

    Nothing is known of a front beyond its ends. There it is assumed to go on as well as possible: better and better in
    one number without a loss in the other. So a point outside of the front's range counts as beyond it only if it is
    also better than the front's end in the other number.

    Args:
        points: (.., n, 2).
        front: (.., m, 2): a curve of straight pieces. It may have parts that are dominated.

    Returns:
        (.., n).
    """
    ahead = front[..., None, :, :] - points[..., :, None, :]  # (.., n, m, 2)
    first, last = ahead[..., :-1, :], ahead[..., 1:, :]
    lead, change = first[..., 0] - first[..., 1], (last - first)
    turn = change[..., 1] - change[..., 0]  # on a piece, the two differences are equal at lead / turn
    t = np.clip(np.divide(lead, turn, out=np.zeros_like(lead), where=turn != 0), 0.0, 1.0)
    inside = (first + t[..., None] * change).max(-1)
    found = np.concatenate([ahead.max(-1), inside], axis=-1).min(-1)
    for axis in (0, 1):
        best, other = front[..., axis], front[..., 1 - axis]
        end = np.where(best == best.min(-1, keepdims=True), other, np.inf).min(-1, keepdims=True)
        found = np.minimum(found, end - points[..., 1 - axis])
    return found
