"""χ² DRO: the worst mixture of the tasks that is near the mixture of the data, found by primal-dual steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adaptive import Reduction, Robust
from .checks import check_count, check_number

LARGEST = 1e3  # a longer step of q is shortened to this length: it leads to the edge of the ball anyway


class ChiSquareDRO(Robust):
    """Minimises max_q Σ q_n L_n over the distributions with ½ Σ (q_n − p_n)² / p_n ≤ ρ.

    Zhou, Levy, Li, Ghazvininejad & Neubig, "Distributionally Robust Multilingual Machine Translation", EMNLP 2021,
    arXiv 2109.04020, with primal-dual steps (Namkoong & Duchi, NeurIPS 2016): θ descends on Σ q_n L_n, and q ascends,
    q ← the nearest point of that set to q + η (L − b). The iterated best response that the authors propose instead
    changes how batches are drawn: it is a sampler.

    The code of the authors multiplies η by q_n / p_n and projects onto a Euclidean ball, ½ Σ (q_n − p_n)² ≤ ρ. Neither
    follows from the objective. Here both are exact. q moves after the step, so that it needs no host sync more. Tasks
    that are absent from a batch count as the mean of those present, Σ q_n L_n / Σ q_n: nothing is won by being absent.

    Args:
        rho: ρ, the radius of the set. 0: the weights are p.
        step_size: η.
        period: q moves after every ``period``-th step. The code of the authors has 100, for long training.
        shares: p, the tasks' shares of the data, a number for each task. Only the ratios matter. None: uniform.
        baselines: b_n, such as the losses of a model that was trained with equal weights. None: 0.
        reduction: whether the weights are N q_n ("sum") or q_n ("mean", as in the paper).

    Raises:
        TypeError, ValueError: an option is not a number, or has a value that is not allowed. Creating the optimizer
            raises it if there is not one number per task.
    """

    remembered = ("q",)

    def __init__(
        self,
        *,
        rho: float = 0.1,
        step_size: float = 1e-3,
        period: int = 1,
        shares: Sequence[float] | Tensor | None = None,
        baselines: Sequence[float] | Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(shares, baselines, reduction)
        self.rho = check_number("ChiSquareDRO: rho", rho)
        self.step_size = check_number("ChiSquareDRO: step_size", step_size)
        self.period = check_count("ChiSquareDRO: period", period)

    def start(self, tasks: int) -> None:
        super().start(tasks)
        self._q = self.shares.clone()

    def weights(self) -> Tensor:
        return self._q * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._check_finite(losses)
        here = list(present)
        slopes, q = losses - self.baselines[here], self._q[here]
        if q.sum() <= 0:  # the batch has only tasks that have no weight now: there is no mean to compare with
            return
        moved = self._q.clone()
        step = self.step_size * (slopes - slopes @ q / q.sum())
        moved[here] += step * (LARGEST / step.abs().max().clamp(min=LARGEST))
        self._q = projected(moved, self.shares, self.rho)


def projected(point: Tensor, p: Tensor, rho: float) -> Tensor:
    """The distribution q with ½ Σ (q_n − p_n)² / p_n ≤ ρ that is nearest to the point. All (N,) float64.

    With multipliers λ ≥ 0 of the bound and η of Σ q_n = 1, q_n = p_n / (p_n + λ) · max(0, point_n − η). η is known when
    the tasks are sorted by their points, and the left side of the bound falls with λ. So λ is searched for, many values
    at a time.
    """
    given, known = point, p > 0  # a task without a share has no weight
    point, p = point[known], p[known]
    high, order = torch.sort(point, descending=True)
    sorted_p = p[order]

    def at(bounds: Tensor) -> Tensor:
        """(B, N) q for each λ, with the tasks in their order."""
        slopes = sorted_p / (sorted_p + bounds[:, None])
        levels = ((slopes * high).cumsum(1) - 1) / slopes.cumsum(1)
        last = (high > levels).sum(1, keepdim=True) - 1  # those with q > 0 come first
        q = slopes * (high - levels.gather(1, last)).clamp(min=0)
        return q / q.sum(1, keepdim=True)  # only rounding errors differ from 1

    def within(bounds: Tensor) -> list[bool]:
        return (0.5 * ((at(bounds) - sorted_p) ** 2 / sorted_p).sum(1) <= rho).tolist()

    bounds = torch.cat([p.new_zeros(1), torch.logspace(-12, 15, 55, dtype=p.dtype, device="cpu")])
    result = torch.zeros_like(given)
    if True not in (fits := within(bounds)):  # ρ is 0, or next to it
        result[known] = p
        return result
    first = fits.index(True)
    while first > 0 and bounds[first] - bounds[first - 1] > 1e-14 * bounds[first]:
        bounds = torch.linspace(float(bounds[first - 1]), float(bounds[first]), 33, dtype=p.dtype, device="cpu")
        first = [*within(bounds[:-1]), True].index(True)
    q = torch.empty_like(p)
    q[order] = at(bounds[first : first + 1])[0]
    result[known] = q
    return result
