"""GradVac: gradients that are less similar than usual are turned towards each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_number, checked_grams
from .pcgrad import NOTHING
from .protocol import Groups, Weighting
from .randomness import checked_seed, random_orders

LIMIT = 0.999  # of the target similarity: to reach 1, the other gradient would have to be added infinitely often
CANCELLED = 1e-12  # relative to ‖g_i‖²: what is left of a gradient that another one cancels is rounding errors


class GradVac(Weighting):
    """The cosine of two tasks' gradients is raised to its moving average t_ij, if it is below it::

        g ← g_i;  for each other task j, in random order:  r = <g, g_j> / (‖g‖ ‖g_j‖)
            if r < t_ij:  g ← g + ‖g‖ (t_ij √(1 − r²) − r √(1 − t_ij²)) / (‖g_j‖ √(1 − t_ij²)) g_j
            t_ij ← (1 − β) t_ij + β r                                                        at first, t_ij = 0

    ḡ is the sum of these g. Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in
    Massively Multilingual Models", ICLR 2021, algorithm 1. With β = 0 it is PCGrad.

    Every g is a combination of the g_n, so the Gram matrix is enough, see :class:`cats.weighting.PCGrad`. Two
    deviations keep the weights finite: a target above 0.999 counts as 0.999, and a gradient that is 0 has no cosine, so
    its pairs are left out. Targets of tasks that are absent from a step stay as they are.

    Args:
        beta: β. The default is the one of the paper, as public code for its translation experiments has it
            (chenllliang/Gradient-Vaccine). LibMTL and TorchJD have 0.5.
        groups: the groups of parameters that have cosines and targets of their own, as in
            :attr:`cats.weighting.Weighting.groups`. None: the whole model ("whole_model" of the paper). "layer": each
            layer ("all_layer", as in the paper). "parameter": each parameter ("all_matrix"). All groups see the tasks
            in the same random order.
        seed: of the random order, see :class:`cats.weighting.PCGrad`.

    Raises:
        TypeError: the seed is not an integer, or beta is not a number.
        ValueError: beta is not in [0, 1]; in a step: a Gram matrix is not finite.
    """

    needs_gram = True

    def __init__(self, beta: float = 0.01, groups: Groups = None, seed: int = 0) -> None:
        self.beta = check_number("GradVac: beta", beta, high=1.0)
        self.groups = groups
        self.seed = checked_seed(seed, "GradVac")

    def start(self, tasks: int) -> None:
        self._step = 0
        # (G, N, N); groups are added as they come
        self._targets = torch.zeros(1, tasks, tasks, dtype=torch.float64, device="cpu")

    def weights_from_grams(self, grams: Tensor, losses: Tensor, present: Sequence[int]) -> Tensor:
        checked_grams(grams, "GradVac")
        more = len(grams) - len(self._targets)
        if more < 0:
            raise ValueError(f"GradVac: its state has {-more} groups of parameters more than there are")
        targets = torch.nn.functional.pad(self._targets, (0, 0, 0, 0, 0, more)).numpy()
        here = targets[:, present][:, :, present]
        orders = random_orders(len(present), self.seed, self._step)
        coefficients = self._vaccinated(grams.numpy(), np.array(orders), here)
        targets[np.ix_(range(len(targets)), present, present)] = here
        self._targets = torch.from_numpy(targets)
        self._step += 1
        return torch.from_numpy(coefficients.sum(1))

    def _vaccinated(self, grams: np.ndarray, orders: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The coefficients of g for each task i, (G, K, K). Moves the targets, (G, K, K).

        No task's g depends on another one's, so all of them meet their next task, of orders (K, K − 1), at once.
        """
        tasks = np.arange(len(orders))
        norms = np.sqrt(np.einsum("gii->gi", grams))
        counts = norms**2 > NOTHING * norms.max(1, keepdims=True) ** 2
        c = np.zeros_like(grams)
        c[:, tasks, tasks] = 1.0
        dots = grams.copy()  # <g, g_n> for all n
        for others in orders.T:  # (K,)
            pairs = (slice(None), tasks, others)
            size = np.sqrt(np.maximum(np.einsum("gij,gij->gi", dots, c), 0.0))  # ‖g‖
            both = (size**2 > CANCELLED * norms**2) & counts & counts[:, others]
            r = np.where(both, dots[pairs] / np.where(both, size * norms[:, others], 1.0), 0.0).clip(-1, 1)
            t = targets[pairs].clip(-LIMIT, LIMIT)
            sine_r, sine_t = np.sqrt(1 - r**2), np.sqrt(1 - t**2)
            low = both & (r < t)
            change = size * (t * sine_r - r * sine_t) / (np.where(low, norms[:, others], 1.0) * sine_t)
            change = np.where(low, change, 0.0)
            c[pairs] += change
            dots += change[:, :, None] * grams[:, others]
            targets[pairs] += np.where(both, self.beta * (r - targets[pairs]), 0.0)
        return c

    @property
    def _kind(self) -> str | None:
        """What the groups are, for the state: with other groups, its targets would be those of something else."""
        return self.groups if self.groups is None or isinstance(self.groups, str) else "own"

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "targets": self._targets.clone(), "groups": self._kind}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        targets, kind = state["targets"], state.get("groups", self._kind)  # earlier versions did not save it
        if kind != self._kind:
            raise ValueError(f"GradVac: the state is of groups={kind!r}, not of groups={self._kind!r}")
        if targets.dim() != 3 or targets.shape[1:] != self._targets.shape[1:] or not targets.isfinite().all():
            raise ValueError(f"GradVac: 'targets' must be (groups, tasks, tasks) numbers, got {tuple(targets.shape)}")
        self._step, self._targets = int(state["step"]), targets.to(torch.float64, copy=True)
