"""Constant weights: plain scalarisation, a weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .protocol import Weighting


class Static(Weighting):
    """Minimises Σ_n w_n L_n with constant weights w_n. They are not normalised. No step computes <g_n, ḡ>.

    If every loss is the mean over the task's own tokens, equal weights give all tasks the same influence, however they
    are sampled. To weight tasks by their share of the tokens, pass these shares.

    Args:
        weights: N finite numbers, or one number for all tasks. ``Static()`` minimises the sum of the losses.

    Raises:
        ValueError: a weight is not finite. Creating the optimizer raises it if the number of weights is not the number
            of tasks.
    """

    period = 0

    def __init__(self, weights: Sequence[float] | Tensor | float = 1.0) -> None:
        self._given = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
        if self._given.dim() > 1 or not torch.isfinite(self._given).all():
            raise ValueError(f"Static: weights must be one number or one finite number per task, got {weights}")

    def start(self, tasks: int) -> None:
        self._weights = self._given.repeat(tasks) if self._given.dim() == 0 else self._given
        if len(self._weights) != tasks:
            raise ValueError(f"Static: {len(self._weights)} weights for {tasks} tasks")

    def weights(self) -> Tensor:
        return self._weights
