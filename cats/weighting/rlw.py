"""Random loss weighting: the control that every adaptive weighting has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adaptive import Adaptive, Reduction
from .randomness import checked_seed, random_numbers


class RLW(Adaptive):
    """New random weights in every step: α = softmax(x), where x has N independent standard normal numbers.

    Lin, Ye, Zhang & Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
    TMLR 2022, arXiv 2111.10603, Section 3, with the normal distribution.

    Args:
        seed: of the random numbers, which depend on it and on the number of the step only. With several processes, all
            need the same seed.
        reduction: whether the weights are N α_n ("sum") or α_n ("mean", as in the paper).

    Raises:
        TypeError, ValueError: an option is not an integer, or has a value that is not allowed.
    """

    remembered = ("step",)

    def __init__(self, *, seed: int = 0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.seed = checked_seed(seed, "RLW")

    def start(self, tasks: int) -> None:
        super().start(tasks)
        self._tasks = tasks
        self._step = torch.zeros((), dtype=torch.int64, device="cpu")

    def weights(self) -> Tensor:
        source = random_numbers(self.seed, int(self._step))
        x = [source.gauss(0.0, 1.0) for _ in range(self._tasks)]
        return torch.tensor(x, dtype=torch.float64, device="cpu").softmax(0) * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._step = self._step + 1
