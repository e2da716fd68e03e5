"""Whether a method is beyond the front of static ratios: a bootstrap over the seeds.

The margin of a point (``cats.nmt.scoring.pareto.front.margins``) is computed from means over the seeds. Its interval
shows what other seeds could make of it. In each resample, the mean of every point, those of static ratios included,
gets a random deviation, as in ``cats.nmt.scoring.bootstrap.seed_weights``: Student's t over the seeds. The front is
interpolated anew, and the margins are computed again.

The intervals of a method hold for all of its points at once: how far they reach is proportional to the spread of each
margin, and the common factor is a quantile of the largest deviation of any point (the basic bootstrap with a
single-step correction; Westfall & Young, 1993). A method is called beyond the front if one of them lies above 0. By
mistake that should happen in 2.5 % of the cases, however many ratios were tried. That is for one method: with many
methods, it happens more often that some method is beyond the front by chance.

Assumed is that the seeds are a random sample and their scores about normal; that these seeds show the spread at each
ratio well enough, which with two or three is doubtful; and that the score of a ratio between two tested ones is near
the interpolation. The bootstrap says nothing about other test text, other languages or other budgets.

How often it is right was simulated with made-up losses, five ratios and 300 experiments for each row. In the second and
fourth row the front bends back: the low side overfits at high ratios. *By mistake*: a method on the front is called
beyond it. *Hold*: all five intervals have the true margins. *Found*: a method that is 0.03 better on both sides, with a
standard deviation over the seeds of 0.005 to 0.023, is called beyond the front. Printed by
``pytest -s -m slow tests/nmt/scoring/pareto/test_beyond.py``.

    seeds  front       by mistake  hold    found
    3      convex      3.3 %       96.0 %   87.7 %
    3      bends back  1.7 %       91.0 %   40.3 %
    5      convex      3.3 %       95.7 %  100.0 %
    5      bends back  0.7 %       93.0 %   75.0 %
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cats.nmt.scoring.bootstrap import seed_weights
from cats.nmt.scoring.pareto.front import hypervolume, interpolate, margins
from cats.nmt.scoring.pareto.results import Estimate

RESAMPLES = 2000
STEPS = 8  # pieces of the curve between two ratios


@dataclass(frozen=True)
class Sample:
    """The losses of a point.

    Attributes:
        seeds: the seeds.
        losses: (seeds, 2), lower is better.
    """

    seeds: list[int]
    losses: np.ndarray


def resampled_means(samples: Sequence[Sample], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means over the seeds that other seeds could have given.

    Returns:
        (resamples, samples, 2).
    """
    weights = seed_weights([each.seeds for each in samples], resamples, np.random.default_rng(seed))
    deviations = [own @ each.losses for own, each in zip(weights, samples, strict=True)]
    return np.stack([each.losses.mean(0) + own for own, each in zip(deviations, samples, strict=True)], axis=1)


def static_front(ratios: Sequence[float], means: np.ndarray) -> np.ndarray:
    """The front of static ratios with the ratios between them, from (.., ratios, 2) means."""
    return interpolate(ratios, means, STEPS)


def margin_estimates(
    ratios: Sequence[float],
    static: np.ndarray,
    points: np.ndarray,
    resampled: tuple[np.ndarray, np.ndarray] | None,
) -> list[Estimate]:
    """The margins of a method's points, with intervals that hold for all of them at once.

    Args:
        ratios: the n ratios of the static front.
        static: (n, 2) means of static ratios.
        points: (m, 2) means of the method.
        resampled: both once more with a first axis for the resamples. None: no intervals.
    """
    observed = margins(points, static_front(ratios, static))
    if resampled is None:
        return [Estimate(float(value)) for value in observed]
    again = margins(resampled[1], static_front(ratios, resampled[0]))
    return simultaneous(observed, again)


def gain_estimate(
    static: np.ndarray,
    points: np.ndarray,
    resampled: tuple[np.ndarray, np.ndarray] | None,
    reference: Sequence[float],
) -> Estimate:
    """How much larger the hypervolume of a method's points is than that of static ratios; arguments as above."""

    def gain(ours: np.ndarray, theirs: np.ndarray) -> float:
        return hypervolume(ours, reference) - hypervolume(theirs, reference)

    observed = gain(points, static)
    if resampled is None:
        return Estimate(observed)
    again = np.array([[gain(ours, theirs)] for theirs, ours in zip(*resampled, strict=True)])
    return simultaneous(np.array([observed]), again)[0]


def simultaneous(observed: np.ndarray, resampled: np.ndarray) -> list[Estimate]:
    """95 % intervals around n numbers that hold for all of them at once, see the text above.

    Args:
        observed: (n,).
        resampled: (resamples, n).
    """
    low, high = np.percentile(resampled, [16, 84], axis=0)
    spread = (high - low) / 2  # unlike the standard deviation, it is finite for t with one or two degrees of freedom
    apart = (resampled - observed) / np.where(spread > 0, spread, np.inf)
    # How much too high the observed numbers may be shows in how much higher the resampled ones are than they.
    above, below = (np.percentile(each.max(1), 97.5) for each in (apart, -apart))
    return [
        Estimate(float(value), float(value - above * own), float(value + below * own))
        for value, own in zip(observed, spread, strict=True)
    ]
