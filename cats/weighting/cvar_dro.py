"""CVaR DRO: the mean loss of the worst tasks that make up a given share of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adaptive import Reduction, Robust
from .checks import check_number


class CVaRDRO(Robust):
    """Minimises max_q Σ q_n L_n over the distributions with q_n ≤ p_n / α: the mean loss of the worst share α.

    Oren, Sagawa, Hashimoto & Liang, "Distributionally Robust Language Modeling", EMNLP 2019, arXiv 1909.02060
    (topic CVaR). The best q has a closed form: sort the tasks by x_n = (moving average of L_n) − b_n, give p_n / α to
    the worst of them while there is something left, and the rest to the next one. As in the code of Zhou et al., EMNLP
    2021, arXiv 2109.04020, the others get a floor.

    The averages are those of before the step, so that it needs no host sync more. They start at the first loss of a
    task, not at 0, which would make rare tasks look easy. A task that was never seen counts as the mean of the others.

    Args:
        tail: α, the share of the data that counts, above 0 and at most 1. 1: the weights are p.
        rate: the share of the newest loss in the moving average.
        floor: every q_n is at least floor · p_n before q is normalised. 0: as in the paper. The tasks outside of the
            tail are then not trained at all.
        shares: p, the tasks' shares of the data, a number for each task. Only the ratios matter. None: uniform.
        baselines: b_n, such as the losses of a model that was trained with equal weights. None: 0.
        reduction: whether the weights are N q_n ("sum") or q_n ("mean", as in the paper).

    Raises:
        TypeError, ValueError: an option is not a number, or has a value that is not allowed. Creating the optimizer
            raises it if there is not one number per task.
    """

    remembered = ("means", "seen")

    def __init__(
        self,
        *,
        tail: float = 0.5,
        rate: float = 0.05,
        floor: float = 0.1,
        shares: Sequence[float] | Tensor | None = None,
        baselines: Sequence[float] | Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(shares, baselines, reduction)
        self.tail = check_number("CVaRDRO: tail", tail, 1e-6, 1.0)
        self.rate = check_number("CVaRDRO: rate", rate, 1e-6, 1.0)
        self.floor = check_number("CVaRDRO: floor", floor, 0.0, 1.0)

    def start(self, tasks: int) -> None:
        super().start(tasks)
        self._means = torch.zeros(tasks, dtype=torch.float64, device="cpu")
        self._seen = torch.zeros(tasks, dtype=torch.bool, device="cpu")

    def weights(self) -> Tensor:
        if not self._seen.any():
            return self.shares * self.scale
        excess = self._means - self.baselines
        excess = torch.where(self._seen, excess, excess[self._seen].mean())
        p = self.shares
        worse = (excess > excess[:, None]).to(p) @ p  # the share of the tasks that are worse than each one
        tied = (excess == excess[:, None]).to(p) @ p  # of those that are as bad, itself among them: they share the rest
        q = p * ((self.tail - worse) / torch.where(tied > 0, tied, 1.0)).clamp(0, 1) / self.tail
        q = torch.maximum(q, self.floor * p)
        return q / q.sum() * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._check_finite(losses)
        here = list(present)
        old, seen = self._means[here], self._seen[here]
        self._means, self._seen = self._means.clone(), self._seen.clone()
        self._means[here] = torch.where(seen, old + self.rate * (losses - old), losses)
        self._seen[here] = True
