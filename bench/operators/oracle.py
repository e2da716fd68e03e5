"""Checks results against the operators computed in float64, in code that shares nothing with the library.

The library promises bounds (`cats.ops`): (K + 1) 2^-24 Σ|w_n g_n| per element of the combination, and 2e-6 |g_i| |g_j|
for inner products. A backend must keep them, or its time is not reported. Baselines promise no bound. They only have to
agree within `BASELINE_TOLERANCE`. Their error, in units of the bound, is reported beside their time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cases import ADAMW, Problem

SUM_BOUND = 2e-6
# Plain float32 sums over 1e7 elements have relative errors of about 1e-3.
BASELINE_TOLERANCE = 2e-2


class Outcome(NamedTuple):
    """What a contender computed; None for what it does not compute. `state`: AdamW updated the problem's state."""

    combined: Sequence[Tensor] | None = None
    dots: Tensor | None = None
    sqnorms: Tensor | None = None
    gram: Tensor | None = None
    state: bool = False
    signs: Sequence[Tensor] | None = None  # per element the sum of the positive or of the negative gradients


# The parts that a backend must compute.
REQUIRED = {
    "combine": ("combined",),
    "combine_dots": ("combined", "dots", "sqnorms"),
    "dots": ("dots",),
    "graddrop": ("signs",),
    "gram": ("gram",),
    "gram, combine": ("gram", "combined"),
    "combine_adamw_": ("dots", "sqnorms", "state"),
    "row_dots": ("dots",),
}


class Oracle:
    """The exact results of a problem, in float64."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        exact: dict[str, Any] = {"dtype": torch.float64, "device": problem.device}
        self.combined = torch.empty(problem.elements, **exact)
        self.magnitude = torch.empty(problem.elements, **exact)  # Σ|w_n g_n|
        self.gram = torch.zeros(problem.tasks, problem.tasks, **exact)
        self.along = torch.zeros(problem.tasks, **exact)  # <g_n, direction>
        self.along_norm = torch.zeros((), **exact)
        self.width = width = max(1, 2**24 // problem.tasks)  # columns of a block; a block has 128 MiB in float64
        with_direction = "dots" in problem.workload.operators
        start = 0
        for i, column in enumerate(problem.columns):
            for first in range(0, column[0].numel(), width):
                part = slice(first, first + width)
                block = torch.stack([g.view(-1)[part].double() for g in column])
                place = slice(start + first, start + first + block.shape[1])
                weighted = block * problem.weights[:, None]
                self.combined[place] = weighted.sum(0)
                self.magnitude[place] = weighted.abs_().sum(0)
                self.gram += block @ block.T
                if with_direction:
                    direction = problem.direction[i].view(-1)[part].double()
                    self.along += block @ direction
                    self.along_norm += direction @ direction
            start += column[0].numel()
        self.norms = self.gram.diagonal().sqrt()

    def errors(self, operator: str, outcome: Outcome) -> dict[str, float]:
        """The largest error of each part of an outcome, as a multiple of its bound; infinite for NaN and infinities."""
        found: dict[str, float] = {}
        norm = self.combined.norm()
        if outcome.combined is not None:
            found["combined"] = self._combined(outcome.combined)
        if outcome.dots is not None:
            if operator == "dots":
                exact, bound = self.along, self.norms * self.along_norm.sqrt()
            else:
                exact, bound = self.gram @ self.problem.weights, self.norms * norm
            found["dots"] = worst(outcome.dots, exact, SUM_BOUND * bound)
        if outcome.sqnorms is not None:
            found["sqnorms"] = worst(outcome.sqnorms, self.norms**2, SUM_BOUND * self.norms**2)
        if outcome.gram is not None:
            found["gram"] = worst(outcome.gram, self.gram, SUM_BOUND * torch.outer(self.norms, self.norms))
        if outcome.signs is not None:
            found["signs"] = self._signs(outcome.signs)
        if outcome.state:
            found["state"] = self._state()
        return found

    def baseline_allowance(self) -> float:
        """The largest error, as a multiple of the bound, with which a baseline still counts as the same computation."""
        # A baseline rounds each of its K + 1 operations to the gradients' dtype. A backend rounds once.
        eps = torch.finfo(self.problem.dtype).eps
        return max(BASELINE_TOLERANCE / SUM_BOUND, 4 * (self.problem.tasks + 1) * eps / SUM_BOUND, 4 * eps * 2**24)

    def _element_bound(self) -> Tensor:
        """(P,): the bound of each element of the combination, before it is rounded to the gradients' dtype."""
        tasks, dtype = self.problem.tasks, self.problem.dtype
        # In float64 the oracle's own error is as large as the errors that it checks.
        unit = 2.0**-24 if dtype is not torch.float64 else 2 * 2.0**-53
        return self.magnitude * ((tasks + 1) * unit)

    def _combined(self, tensors: Sequence[Tensor]) -> float:
        bound = self._element_bound()
        if self._narrow:
            bound = bound + self._rounding(self.combined.abs() + bound)
        return max(
            worst(t.view(-1), exact, limit)
            for t, exact, limit in zip(tensors, self._split(self.combined), self._split(bound), strict=True)
        )

    def _signs(self, tensors: Sequence[Tensor]) -> float:
        """The error from the nearer of the two sums of each element: every contender has its own random numbers."""
        largest = 0.0
        unit = 2.0**-24 if self.problem.dtype is not torch.float64 else 2 * 2.0**-53
        for column, t in zip(self.problem.columns, tensors, strict=True):
            for first in range(0, t.numel(), self.width):
                part = slice(first, first + self.width)
                block = torch.stack([g.view(-1)[part].double() for g in column])
                up, down, result = block.clamp(min=0).sum(0), block.clamp(max=0).sum(0), t.view(-1)[part].double()
                exact = torch.where((result - up).abs() <= (result - down).abs(), up, down)
                bound = exact.abs() * ((self.problem.tasks + 1) * unit)
                if self._narrow:
                    bound += self._rounding(exact.abs() + bound)
                largest = max(largest, worst(result, exact, bound))
        return largest

    @property
    def _narrow(self) -> bool:
        return self.problem.dtype in (torch.bfloat16, torch.float16)

    def _rounding(self, size: Tensor) -> Tensor:
        """The largest error of rounding numbers of this size to the gradients' dtype, subnormal numbers included."""
        info = torch.finfo(self.problem.dtype)
        return info.eps / 2 * size.clamp(min=info.smallest_normal)

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split([column[0].numel() for column in self.problem.columns])

    def _state(self) -> float:
        """The largest error of the new parameters and moments, against one AdamW update in float64."""
        problem = self.problem
        after = [[t.clone() for t in tensors] for tensors in problem.state]
        problem.reset_state()
        params, averages, squares = problem.state
        unit = torch.finfo(averages[0].dtype).eps / 2
        lr, b1, b2, eps, decay = (ADAMW[k] for k in ("lr", "beta1", "beta2", "eps", "weight_decay"))
        largest = 0.0
        gradients, slack = self._split(self.combined), self._split(self._element_bound())
        for i, (g, error) in enumerate(zip(gradients, slack, strict=True)):
            p, m, v = (tensors[i].double().view(-1) for tensors in (params, averages, squares))
            m_new = b1 * m + (1 - b1) * g
            v_new = b2 * v + (1 - b2) * g * g
            root = (v_new / (1 - b2)).sqrt() + eps
            step = lr / (1 - b1)
            p_new = p * (1 - lr * decay) - step * m_new / root
            # Roundings of the terms, plus the effect of the gradient's error.
            m_bound = 4 * unit * (m.abs() + g.abs()) + (1 - b1) * error
            v_bound = 6 * unit * v_new + 2 * (1 - b2) * g.abs() * error
            update = (step * m_new / root).abs()
            p_bound = 8 * unit * (p.abs() + update) + step * m_bound / root + update * v_bound / v_new
            if self._narrow:
                p_bound += self._rounding(p_new.abs() + p_bound)
            for mine, exact, bound in zip(after, (p_new, m_new, v_new), (p_bound, m_bound, v_bound), strict=True):
                largest = max(largest, worst(mine[i].view(-1), exact, bound))
        return largest


def worst(result: Tensor, exact: Tensor, bound: Tensor) -> float:
    """max |result - exact| / bound. Infinite for NaN and infinities, and for an error where the bound is 0."""
    error = (result.double() - exact).abs()
    ratio = torch.where(error == 0, 0.0, error / bound)
    return float(torch.nan_to_num(ratio, nan=math.inf, posinf=math.inf).max())
