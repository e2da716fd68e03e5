"""Whether a method is beyond the front: intervals, and how often they are right."""

from __future__ import annotations

import numpy as np
import pytest

from cats.nmt.scoring.pareto.beyond import (
    Sample,
    gain_estimate,
    margin_estimates,
    resampled_means,
    simultaneous,
    static_front,
)
from cats.nmt.scoring.pareto.front import margins

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def test_the_interval_of_a_single_margin_is_that_of_student():
    losses = np.array([[-9.0, 0.3], [-9.0, -0.2], [-9.0, 0.5], [-9.0, 0.0]])
    samples = [Sample([1, 2, 3, 4], np.zeros((4, 2))), Sample([1, 2, 3, 4], losses)]
    means = resampled_means(samples, 40_000)
    # The point is so much better on one side that its margin is that of the other side.
    (found,) = margin_estimates([0.5], np.zeros((1, 2)), losses.mean(0)[None], (means[:, :1], means[:, 1:]))
    error = 3.182 * losses[:, 1].std(ddof=1) / 2  # the quantile of t with three degrees of freedom
    # The quantile of 40,000 draws of such a t has a standard error of 1.2 %.
    assert found.value == pytest.approx(-0.15)
    assert found.low == pytest.approx(-0.15 - error, abs=0.05 * error)
    assert found.high == pytest.approx(-0.15 + error, abs=0.05 * error)


def test_intervals_that_hold_at_once_are_wider_and_follow_the_spread_of_each():
    draws = np.random.default_rng(0).standard_normal((100_000, 5)) * [1, 1, 1, 1, 10]
    one, many = simultaneous(np.zeros(1), draws[:, :1])[0], simultaneous(np.zeros(5), draws)
    # Quantiles of the standard normal distribution: 0.975, and the fifth root of that; standard errors below 0.01.
    assert (one.low, one.high) == pytest.approx((-1.960, 1.960), abs=0.03)
    assert [each.high for each in many] == pytest.approx([2.572] * 4 + [25.72], rel=0.03)
    still = simultaneous(np.array([1.0, 2.0]), np.array([[1.0, 2.0], [1.0, 3.0]]))[0]
    assert (still.low, still.value, still.high) == (1.0, 1.0, 1.0)  # without spread


def test_the_gain_is_the_difference_of_the_hypervolumes():
    static, points = np.array([[1.0, 3.0], [3.0, 1.0]]), np.array([[0.0, 3.0], [2.0, 2.0]])
    assert gain_estimate(static, points, None, (4, 4)).value == (4 + 2) - (3 + 3 - 1)
    several = np.stack([static, static]), np.stack([points, points])
    found = gain_estimate(static, points, several, (4, 4))
    assert found.low == found.value == found.high == 1


def front(ratios: np.ndarray, bends: bool) -> np.ndarray:
    """True losses of static ratios. bends: the low side overfits at high ratios, so that they are dominated."""
    low = 0.8 + 0.35 * ratios**-0.35 + 0.5 * ratios**1.5 if bends else 1 + 0.2 * ratios**-0.4
    return np.stack([low, 1 + 0.15 * (1 - ratios) ** -0.4], axis=-1)


def experiment(random: np.random.Generator, seeds: int, gain: float, bends: bool, resamples: int) -> tuple[bool, bool]:
    """Whether a method is called beyond the front, and whether all of its intervals hold.

    Its true losses are those of static ratios with somewhat more of the low side, minus `gain`. The standard deviation
    over the seeds is 0.0225 on the low side and 0.0105 on the high side at the first ratio, and falls to less than half
    of it at the last one; a fifth of the variance is common to all runs with a seed.
    """
    ratios = np.array(RATIOS)
    more = np.minimum(0.9, 1 / (1 + (1 - ratios) / ratios * np.exp(-0.4)))
    truth = front(ratios, bends), front(more, bends) - gain
    true_margins = margins(truth[1], static_front(RATIOS, truth[0]))
    common = random.standard_normal((seeds, 1, 2))
    spread = 0.015 * np.array([1.5, 0.7]) * np.linspace(1.0, 0.47, len(ratios))[:, None]
    losses = [
        each + spread * (0.2**0.5 * common + 0.8**0.5 * random.standard_normal((seeds, *each.shape))) for each in truth
    ]
    samples = [Sample(list(range(seeds)), each[:, i]) for each in losses for i in range(len(ratios))]
    means = resampled_means(samples, resamples, seed=int(random.integers(2**31)))
    static, points = (each.mean(0) for each in losses)
    found = margin_estimates(RATIOS, static, points, (means[:, : len(ratios)], means[:, len(ratios) :]))
    ends = np.array([[each.low, each.high] for each in found], dtype=float)
    return bool((ends[:, 0] > 0).any()), bool(((ends[:, 0] <= true_margins) & (true_margins <= ends[:, 1])).all())


def test_a_method_on_the_front_is_seldom_called_beyond_it():
    random = np.random.default_rng(0)
    on_it = [experiment(random, 3, 0.0, False, 200)[0] for _ in range(25)]
    beyond = [experiment(random, 3, 0.15, False, 200)[0] for _ in range(3)]
    assert sum(on_it) <= 4 and all(beyond)  # with a probability of 2.5 % each, 5 or more of 25 happen in 1 of 3,000


@pytest.mark.slow
@pytest.mark.parametrize("bends", [False, True])
@pytest.mark.parametrize("seeds", [3, 5])
def test_calibration(seeds, bends):
    """Prints, with pytest -s, the figures in the docstring of ``cats.nmt.scoring.pareto.beyond``."""
    shares = {}
    for gain in (0.0, 0.03):
        random = np.random.default_rng(1)
        results = np.array([experiment(random, seeds, gain, bends, 400) for _ in range(300)])
        shares[gain] = results.mean(0)
    (false, covered), (found, _) = shares[0.0], shares[0.03]
    print(
        f"\n{seeds} seeds, bends {bends}: called beyond by mistake {false:.1%}, intervals hold {covered:.1%}, "
        f"a gain of 0.03 found {found:.1%}"
    )
    assert false < 0.06 and covered > 0.8 and found > 0.15
