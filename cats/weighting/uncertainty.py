"""Uncertainty weighting: each loss is divided by a learnt variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adam import adam_start, adam_step
from .adaptive import Adaptive, Reduction
from .checks import check_number

LARGEST = 30.0  # |s| stays below this: a loss of 0 or less would drive s to −∞, and the weight to infinity


class Uncertainty(Adaptive):
    """Minimises Σ_n L_n / (2 exp(s_n)) + s_n / 2 over the model and over s_n = log σ_n².

    Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
    CVPR 2018, arXiv 1705.07115, Eq. 7, with s_n in place of log σ_n² as they advise. The weight of a task is
    1 / (2 exp(s_n)). For a constant loss it converges to 1 / (2 L_n). For a classification loss, Eq. 10 has L_n / σ²,
    which converges to the same weight.

    In the paper the model's optimizer moves s. Here Adam does, by ½ − L_n / (2 exp(s_n)), so that the weights do not
    depend on the base optimizer. s_n stays within ±30.

    Args:
        lr: the learning rate of s.
        start: s at the beginning. −0.5, as in LibMTL, is a weight of 0.82.
        reduction: "sum" as in the paper, or "mean": all weights are divided by N.

    Raises:
        TypeError, ValueError: an option is not a number, or has a value that is not allowed.
    """

    remembered = ("adam",)

    def __init__(self, *, lr: float = 0.01, start: float = -0.5, reduction: Reduction = "sum") -> None:
        super().__init__(reduction)
        self.lr = check_number("Uncertainty: lr", lr)
        self.first = check_number("Uncertainty: start", start, -LARGEST, LARGEST)

    def start(self, tasks: int) -> None:
        self.scale = 1.0 if self.reduction == "sum" else 1.0 / tasks  # these weights have no fixed sum
        self._adam = adam_start(torch.full((tasks,), self.first, dtype=torch.float64, device="cpu"))

    def weights(self) -> Tensor:
        return torch.exp(-self._adam[0]) / 2 * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._check_finite(losses)
        slopes = (1 - losses * torch.exp(-self._adam[0, list(present)])) / 2
        self._adam = adam_step(self._adam, slopes, present, lr=self.lr)
        self._adam[0].clamp_(-LARGEST, LARGEST)
