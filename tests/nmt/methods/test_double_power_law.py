"""double-power-law: its constants are found again in made-up sweeps, and its ratios are the best ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cats.nmt.errors import UserError
from cats.nmt.methods.double_power_law import DoublePowerLaw, Law, best_ratios, fit
from tests.nmt.methods.common import Runs, known

SIZES = np.array([200_000.0, 20_000.0, 2_000.0])
LAW = Law(0.4, 0.7, -0.5, 0.3, 0.2, 0.05, np.array([1.1, 1.4, 1.0]))
TEMPERATURES = [1, 1.5, 2, 3, 5, 1e9]


def swept() -> np.ndarray:
    raw = np.array([SIZES ** (1 / t) for t in TEMPERATURES])
    return raw / raw.sum(1, keepdims=True)


class Sweep(Runs):
    def __init__(self, ratios: np.ndarray, losses: np.ndarray) -> None:
        self.both = ratios, losses

    def sweep(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        return self.both


def test_constants_are_found_again():
    found = fit(swept(), LAW.losses(swept(), SIZES), SIZES)
    got = [found.alpha, found.beta, found.gamma, found.gain, found.small_data, found.any_data]
    # The search ends when the exponents move by less than 0.1 %; sweeps determine the smaller factors less well.
    assert got == pytest.approx([0.4, 0.7, -0.5, 0.3, 0.2, 0.05], rel=0.03)
    assert found.levels == pytest.approx(LAW.levels, abs=0.02)
    new = np.array([[0.3, 0.3, 0.4], [0.8, 0.15, 0.05]])
    assert found.losses(new, SIZES) == pytest.approx(LAW.losses(new, SIZES), abs=1e-3)


def test_noise_does_not_change_the_prediction_much():
    noise = np.random.default_rng(1).normal(0, 0.005, (len(TEMPERATURES), 3))
    found = fit(swept(), LAW.losses(swept(), SIZES) + noise, SIZES)
    assert found.losses(swept(), SIZES) == pytest.approx(LAW.losses(swept(), SIZES), abs=0.015)  # three deviations


@pytest.mark.parametrize("beta", [0.5, 0.7, 1.5])
def test_ratios_are_the_best_of_a_fine_grid(beta: float):
    law = Law(0.4, beta, -0.5, 0.3, 0.2, 0.05, LAW.levels)
    ratios = best_ratios(law, SIZES, swept())
    steps = np.linspace(0.005, 0.99, 198)
    grid = np.array([(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b < 0.9975])
    losses = law.losses(grid, SIZES).sum(1)
    assert law.losses(ratios, SIZES).sum() <= losses.min()
    assert ratios == pytest.approx(grid[losses.argmin()], abs=0.006)  # the grid's step, and a bit
    assert ratios.sum() == pytest.approx(1) and ratios[0] > ratios[1] > ratios[2]  # little data is soon overfitted


def test_the_rule_draws_the_solved_ratios_and_keeps_them():
    rule = DoublePowerLaw(sweep="some")
    found = rule.start(known([0.5, 0.3, 0.2], SIZES, Sweep(swept(), LAW.losses(swept(), SIZES))))
    assert found == pytest.approx(best_ratios(LAW, SIZES, swept()), abs=0.01)
    assert rule.state == ()


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match=r"fitted to a sweep .* give method\.options=sweep=FOLDER"):
        DoublePowerLaw()
    few = Sweep(swept()[:2], LAW.losses(swept()[:2], SIZES))
    with pytest.raises(UserError, match=r"some has 2 runs, but the law needs at least 3 with different ratios for 3"):
        DoublePowerLaw(sweep="some").start(known([0.5, 0.3, 0.2], SIZES, few))
    same = Sweep(swept()[[0, 0, 0, 0]], LAW.losses(swept()[[0, 0, 0, 0]], SIZES))
    with pytest.raises(UserError, match="with different ratios"):
        DoublePowerLaw(sweep="some").start(known([0.5, 0.3, 0.2], SIZES, same))
