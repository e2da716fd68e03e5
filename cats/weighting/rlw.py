"""Random loss weighting: the control that every adaptive weighting has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adaptive import Adaptive, Reduction


class RLW(Adaptive):
    """New random weights in every step: α = softmax(x), where x has N independent standard normal numbers.

    Lin, Ye, Zhang & Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
    TMLR 2022, arXiv 2111.10603, Section 3, with the normal distribution.

    Args:
        seed: of the random numbers. They do not depend on those of torch, and go on after a checkpoint where they were.
            With several processes, all need the same seed.
        reduction: whether the weights are N α_n ("sum") or α_n ("mean", as in the paper).

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    remembered = ("alpha", "random")

    def __init__(self, *, seed: int = 0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"RLW: seed must be an integer of at least 0 and below 2^63, got {seed!r}")
        self.seed = seed

    def start(self, tasks: int) -> None:
        super().start(tasks)
        self._random = torch.Generator("cpu").manual_seed(self.seed).get_state()
        self._draw(tasks)

    def _draw(self, tasks: int) -> None:
        generator = torch.Generator("cpu")
        generator.set_state(self._random)
        self._alpha = torch.randn(tasks, generator=generator, dtype=torch.float64, device="cpu").softmax(0)
        self._random = generator.get_state()

    def weights(self) -> Tensor:
        return self._alpha * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._draw(len(self._alpha))
