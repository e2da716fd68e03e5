"""Ratios from a law that predicts each task's loss from its share of the batches (double-power-law)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.methods.sampling_rule import Known, SamplingRule, Seen

SHARED = 6  # constants of the law that all tasks have in common
# The exponents that are tried first: α and β, and −γ. Then the grid is narrowed ROUNDS times around the best.
_FIRST = np.geomspace(0.05, 4.0, 9)
_ROUNDS = 12
_NARROWER = 0.6


@dataclass(frozen=True)
class Law:
    """L_n(p) = A p^−α + (C (D_n / mean D)^γ + E) p^β + M_n.

    It is the law of Chen et al. with A = k^−α, C = q^β (with the unit of D in it) and E = b q^β.

    Attributes:
        alpha, beta, gamma: α > 0, β > 0, γ < 0. gain: A. small_data: C. any_data: E. All three are at least 0.
        levels: (tasks,) float64, M_n.
    """

    alpha: float
    beta: float
    gamma: float
    gain: float
    small_data: float
    any_data: float
    levels: np.ndarray

    def losses(self, ratios: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """(runs, tasks) predicted losses in nats per token, from (runs, tasks) ratios and (tasks,) training pairs."""
        return self.gain * ratios**-self.alpha + self.overfitting(sizes) * ratios**self.beta + self.levels

    def overfitting(self, sizes: np.ndarray) -> np.ndarray:
        """(tasks,) the factor of p^β."""
        return self.small_data * (sizes / sizes.mean()) ** self.gamma + self.any_data


class DoublePowerLaw(SamplingRule):
    """Fits the double power law to a sweep of runs, and draws the tasks with the ratios that it predicts to be best.

    Chen et al., "On the Pareto Front of Multilingual Neural Machine Translation", NeurIPS 2023, arXiv 2304.03216:

        L_n(p) = (k p)^−α + (D_n^γ + b) (q p)^β + M_n

    is the validation loss of a task with D_n training pairs and the share p of the batches. The first term is what more
    training gains, the second what a task loses by overfitting, the more the less data it has. The ratios minimise the
    sum of the predicted losses.

    The constants are fitted by least squares to all runs of the sweep. All are shared by the tasks but M_n: each task
    has a level of its own here, because languages differ in it, and it does not move the best ratios. For given
    exponents the law is linear in the rest, so only the three exponents are searched for. The authors' constants are
    not used: they hold for their corpora, models and budgets.

    Args:
        sweep: a folder of finished runs of this corpus with different constant ratios, such as temperatures, or a JSON
            or CSV file of their ratios and losses, see ``cats.nmt.training.sweep``.
    """

    period = 10**9  # the ratios never change
    needs_losses = False

    def __init__(self, sweep: str = "") -> None:
        if not sweep:
            raise ValueError(
                "it is fitted to a sweep of finished runs with different ratios: give method.options=sweep=FOLDER, or "
                "a JSON or CSV file"
            )
        self.sweep = sweep

    def start(self, known: Known) -> np.ndarray:
        ratios, losses = known.runs.sweep(self.sweep)
        count, tasks = ratios.shape
        least = 1 + -(-SHARED // tasks)
        if len(np.unique(ratios.round(6), axis=0)) < least:
            raise UserError(
                f"method.options: {self.sweep} has {count} runs, but the law needs at least {least} with different "
                f"ratios for {tasks} tasks"
            )
        return best_ratios(fit(ratios, losses, known.sizes), known.sizes, ratios)

    def decide(self, seen: Seen) -> np.ndarray | None:
        return None


def fit(ratios: np.ndarray, losses: np.ndarray, sizes: np.ndarray) -> Law:
    """The law with the least squared error.

    Args:
        ratios, losses: (runs, tasks), the tasks' shares, and their losses in nats per token.
        sizes: (tasks,) training pairs.
    """
    target = losses - losses.mean(0)  # the mean of a task's runs determines its level
    relative = sizes / sizes.mean()

    def columns(alpha: float, beta: float, minus_gamma: float) -> np.ndarray:
        """(3, runs, tasks): what A, C and E are multiplied by."""
        grown = ratios**beta
        return np.stack([ratios**-alpha, relative**-minus_gamma * grown, grown])

    def error(exponents: tuple[float, float, float]) -> tuple[float, np.ndarray]:
        found = columns(*exponents)
        return _positive_least_squares((found - found.mean(1, keepdims=True)).reshape(3, -1), target.ravel())

    grid = list(itertools.product(_FIRST, repeat=3))
    step = np.log(_FIRST[1] / _FIRST[0])
    best = min(grid, key=lambda exponents: error(exponents)[0])
    for _ in range(_ROUNDS):
        step *= _NARROWER
        near = np.exp(step * np.array([-1.0, 0.0, 1.0]))
        candidates = [tuple(np.multiply(best, factors).tolist()) for factors in itertools.product(near, near, near)]
        best = min(candidates, key=lambda exponents: error(exponents)[0])
    factors = error(best)[1]
    levels = (losses - np.tensordot(factors, columns(*best), 1)).mean(0)
    gain, small_data, any_data = factors.tolist()
    return Law(best[0], best[1], -best[2], gain, small_data, any_data, levels)


def _positive_least_squares(columns: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The squared error and the factors, at least 0, of the best combination of three columns.

    The best combination of some of the columns without that bound is the answer, so all choices are tried.
    """
    best = float(target @ target), np.zeros(3)
    for chosen in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        some = columns[chosen]
        factors = np.linalg.lstsq(some.T, target, rcond=None)[0]
        if (factors >= 0).all():
            rest = target - factors @ some
            if rest @ rest < best[0]:
                best = float(rest @ rest), np.zeros(3)
                best[1][chosen] = factors
    return best


def best_ratios(law: Law, sizes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The ratios with the least sum of the predicted losses, (tasks,) with the sum 1.

    With β < 1 there may be several local minima. So descent starts from uniform ratios and from all `starts`, (runs,
    tasks).
    """

    def loss(ratios: np.ndarray) -> float:
        return float(law.losses(ratios, sizes).sum())

    found = [_descended(law, sizes, each / each.sum()) for each in [np.ones(len(sizes)), *starts]]
    return min(found, key=loss)


def _descended(law: Law, sizes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Mirror descent p ← p exp(−η ∇) / Σ with a step size that adapts, until nothing is gained."""
    rate, current = 1.0, law.losses(ratios, sizes).sum()
    for _ in range(5000):
        slopes = -law.alpha * law.gain * ratios ** (-law.alpha - 1)
        slopes += law.beta * law.overfitting(sizes) * ratios ** (law.beta - 1)
        slopes -= ratios @ slopes
        tried = ratios * np.exp(np.clip(-rate * slopes, -1, 1))
        tried = np.maximum(tried / tried.sum(), 1e-9)
        tried /= tried.sum()
        new = law.losses(tried, sizes).sum()
        if new < current:
            gained, ratios, current, rate = current - new, tried, new, rate * 1.5
            if gained < 1e-13 * abs(current):
                break
        else:
            rate /= 4
            if rate < 1e-12:
                break
    return ratios
