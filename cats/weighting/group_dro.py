"""Group DRO: weight to the task with the largest loss, by exponentiated gradient ascent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adaptive import Reduction, Robust
from .checks import check_number

SMALLEST = -700.0  # log q_n stays above this, so that q_n is positive, and a task can come back


class GroupDRO(Robust):
    """Minimises the loss of the worst task: min_θ max_q Σ q_n L_n over the simplex.

    Sagawa, Koh, Hashimoto & Liang, "Distributionally Robust Neural Networks", ICLR 2020, arXiv 1911.08731,
    Algorithm 1. In every step q_n ← q_n exp(η (L_n − b_n)), normalised. Zhou et al., EMNLP 2021, use it as a baseline
    for multilingual translation.

    q moves after the step, not before it, so a step is one step behind Algorithm 1 and needs no host sync more. Tasks
    that are absent from a batch keep their q_n: the others share what they had together. Without that, whoever is
    present often would win, because losses are positive.

    Args:
        step_size: η. 0.01 in the code of the paper; Zhou et al. use 0.1.
        shares: q at the beginning, a number for each task. Only the ratios matter. None: uniform.
        baselines: b_n, such as the losses that each task reaches by itself. None: 0. −C / √(size of the task) is the
            group adjustment of the paper.
        reduction: whether the weights are N q_n ("sum") or q_n ("mean", as in the paper).

    Raises:
        TypeError, ValueError: an option is not a number, or has a value that is not allowed. Creating the optimizer
            raises it if there is not one number per task.
    """

    remembered = ("logits",)

    def __init__(
        self,
        *,
        step_size: float = 0.01,
        shares: Sequence[float] | Tensor | None = None,
        baselines: Sequence[float] | Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(shares, baselines, reduction)
        self.step_size = check_number("GroupDRO: step_size", step_size)

    def start(self, tasks: int) -> None:
        super().start(tasks)
        self._logits = self.shares.log().clamp(min=SMALLEST)

    def weights(self) -> Tensor:
        return torch.softmax(self._logits, 0) * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._check_finite(losses)
        here = list(present)
        old = self._logits[here]
        new = old + self.step_size * (losses - self.baselines[here])
        new = torch.log_softmax(new, 0) + torch.logsumexp(old, 0)
        self._logits = self._logits.clone()
        self._logits[here] = new.clamp(min=SMALLEST)
