"""PCGrad: conflicting gradients are projected onto each other's normal planes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import checked_grams
from .protocol import Weighting
from .randomness import checked_seed, random_orders

NOTHING = 1e-60  # relative to the largest ‖g_n‖²: a smaller gradient counts as 0, so that weights do not overflow


class PCGrad(Weighting):
    """For each task i, the part of its gradient that conflicts with another task's gradient is removed::

        g ← g_i;  for each other task j, in random order:  if <g, g_j> < 0:  g ← g − <g, g_j> / ‖g_j‖² g_j

    ḡ is the sum of these g. Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.

    Every g is a combination Σ c_n g_n, and <g, g_j> = Σ c_n G_nj, so the Gram matrix G is enough. The weights are the
    sums of these c. They are at least 1 for each task, and do not change if all losses are multiplied by a number.

    Args:
        seed: of the random order. The order of a step depends on the seed and the number of the step only, so a resumed
            run has the same, and so do all processes.

    Raises:
        TypeError: the seed is not an integer.
        ValueError: in a step: the Gram matrix is not finite.
    """

    needs_gram = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked_seed(seed, "PCGrad")

    def start(self, tasks: int) -> None:
        self._step = 0

    def weights_from_gram(self, gram: Tensor, losses: Tensor) -> Tensor:
        inner = checked_grams(gram, "PCGrad").numpy()
        sqnorms = inner.diagonal()
        counts = sqnorms > NOTHING * sqnorms.max()
        coefficients = np.eye(len(gram))
        for c, order in zip(coefficients, random_orders(len(gram), self.seed, self._step), strict=True):
            dots = c @ inner  # <g, g_j> for all j
            for j in order:
                if dots[j] < 0 and counts[j]:
                    change = -dots[j] / sqnorms[j]
                    c[j] += change
                    dots = dots + change * inner[j]
        self._step += 1
        return torch.from_numpy(coefficients.sum(0))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != {"step"} or type(state["step"]) is not int:
            raise ValueError(f"PCGrad: the state must be the number of the step, got {list(state)}")
        self._step = state["step"]
