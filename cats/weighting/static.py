"""Constant weights: plain scalarisation, a weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import numbers_of, per_task
from .protocol import Weighting


class Static(Weighting):
    """Minimises Σ_n w_n L_n with constant weights w_n. They are not normalised. No step computes <g_n, ḡ>.

    If every loss is the mean over the task's own tokens, equal weights give all tasks the same influence, however they
    are sampled. To weight tasks by their share of the tokens, pass these shares.

    Args:
        weights: {task: number} with all tasks, N finite numbers, or one number for all tasks. ``Static()`` minimises
            the sum of the losses.

    Raises:
        ValueError: a weight is not finite. Creating the optimizer raises it if a weight is missing or of an unknown
            task, or if the number of weights is not that of the tasks.
    """

    period = 0

    def __init__(self, weights: Mapping[Any, float] | Sequence[float] | Tensor | float = 1.0) -> None:
        self._given: Mapping[Any, float] | Tensor
        if isinstance(weights, Mapping):
            self._given = dict(weights)
            return
        self._given = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
        if self._given.dim() > 1 or not torch.isfinite(self._given).all():
            raise ValueError(f"Static: weights must be one number or one finite number per task, got {weights}")

    def start(self, tasks: int) -> None:
        given = numbers_of(self._given, self.names, "Static")
        if isinstance(given, Tensor) and given.dim() == 0:
            given = given.repeat(tasks)
        if len(given) != tasks:
            raise ValueError(f"Static: {len(given)} weights for {tasks} tasks")
        self._weights = per_task(given, tasks, "Static")

    def weights(self) -> Tensor:
        return self._weights
