"""Distributionally robust sampling over a chi-square ball, by iterated best response (chi-square-ibr)."""

from __future__ import annotations

import numpy as np

from cats.nmt.methods.sampling_rule import Known, SamplingRule, Seen, check


class ChiSquareIBR(SamplingRule):
    """min_θ max_q Σ_n q_n (L_n − b_n) with q in a chi-square ball around p (Zhou, Levy, Li, Ghazvininejad & Neubig,
    EMNLP 2021: "Distributionally Robust Multilingual Machine Translation", their iterated best response).

    Every `period` updates, q becomes the best response to the losses of θ (see ``best_response``), and sentences are
    drawn with q. L_n is a moving average over the updates that have task n. p is what [sampling] configures; the paper
    has `sampling.temperature = 1`.

    Differences from their code: the moving average starts from the first loss instead of 0 and is not cleared between
    two decisions; it is of the nll without label smoothing; the period is a number of updates, not an epoch. Where all
    losses are below their baselines, the code goes on with the losses themselves; here the baselines always count.

    Args:
        rho: radius of the ball, ½ Σ p_n (q_n/p_n − 1)² ≤ rho.
        period: updates between two decisions. The first one comes after as many.
        ema: share of the newest loss in the moving average.
        floor: q_n is at least about this share of p_n.
        clamp: no q_n is below the smallest p_n, as in their script for TED; with equal p_n, q cannot leave p then.
        reference: a run trained without this method, whose last training losses are the baselines b; empty: b = 0.
    """

    state = ("centre", "baseline", "average")

    def __init__(
        self,
        rho: float = 0.05,
        period: int = 100,
        ema: float = 0.1,
        floor: float = 0.2,
        clamp: bool = False,
        reference: str = "",
    ) -> None:
        check(
            rho=(0 < rho < np.inf, rho, "above 0"),
            period=(period > 0, period, "at least 1"),
            ema=(0 < ema <= 1, ema, "above 0 and at most 1"),
            floor=(0 <= floor < 1, floor, "at least 0 and below 1"),
        )
        self.rho, self.period, self.ema, self.floor, self.clamp = rho, period, ema, floor, clamp
        self.reference = reference

    def start(self, known: Known) -> np.ndarray:
        self.centre, self.average = known.probabilities, np.full(len(known.tasks), np.nan)
        self.baseline = np.zeros(len(known.tasks))
        if self.reference:
            self.baseline = known.runs.training_nll(self.reference)
        return known.probabilities

    def decide(self, seen: Seen) -> np.ndarray | None:
        for nats, tokens in seen.losses.transpose(0, 2, 1):
            there = tokens > 0
            new = nats[there] / tokens[there]
            old = np.where(np.isnan(self.average[there]), new, self.average[there])
            self.average[there] = (1 - self.ema) * old + self.ema * new
        if np.isnan(self.average).any():
            return None  # a task that has not been seen yet
        q = best_response(self.average - self.baseline, self.centre, self.rho, self.floor)
        if self.clamp:
            q = np.maximum(q, self.centre.min())
        return q / q.sum()


def best_response(losses: np.ndarray, centre: np.ndarray, rho: float, floor: float = 0.0) -> np.ndarray:
    """The q that maximises Σ q_n losses_n in the simplex, with ½ Σ p_n (q_n/p_n − 1)² ≤ rho around p = centre.

    The solution is q_n ~ p_n max(losses_n − η, 0), with η found by bisection. With `floor`, q_n/p_n is raised to at
    least that, and q divided by its sum, for every η. Only differences between losses matter.

    Args:
        losses, centre: (tasks,) float64. Tasks with p_n = 0 stay at 0.
    """
    below = losses.max(where=centre > 0, initial=-np.inf) - losses
    spread = below.max(where=centre > 0, initial=0.0)
    if spread == 0:
        return centre

    def q(reach: float) -> np.ndarray:  # reach: how far η is below the largest loss
        raised = centre * np.maximum(reach - below, 0.0)
        raised = np.maximum(raised / raised.sum(), floor * centre)
        return raised / raised.sum()

    def is_inside(found: np.ndarray) -> bool:
        ratio = np.divide(found, centre, out=np.ones(len(centre)), where=centre > 0)
        return 0.5 * float((centre * (ratio - 1) ** 2).sum()) <= rho

    low, high = np.log(spread) - 40.0, np.log(spread)
    if is_inside(q(np.exp(low))):
        return q(np.exp(low))  # all of q on the task with the largest loss
    while not is_inside(q(np.exp(high))):
        high += 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if is_inside(q(np.exp(middle))) else (middle, high)
    return q(np.exp(high))
