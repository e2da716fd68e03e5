"""The reducer for one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from cats.engines.per_task import TaskGradients
from cats.gradients import Gradient, add_to_grad
from cats.weighting import Weighting

from .interface import BeforeLastPass, Call, Statistics


class Local:
    """One process: there is nothing to reduce."""

    names_nonfinite_task = True
    averages = False
    whole_backward = False

    def together(self, call: Call) -> AbstractContextManager[None]:
        return nullcontext()

    def check(
        self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting, *, per_task: bool, reason: str
    ) -> None:
        if not tasks:
            raise ValueError("backward() needs the loss of at least one task")

    @contextmanager
    def averaged(self, params: Sequence[Tensor]) -> Iterator[BeforeLastPass]:
        yield lambda: None

    def exchanged(
        self, gathered: TaskGradients, tasks: list[int], values: list[Tensor], gradients: list[Gradient], count: int
    ) -> tuple[list[int], list[Tensor], list[Gradient]]:
        return tasks, values, gradients

    def loss_totals(self, losses: dict[int, Tensor], params: Sequence[Tensor], count: int) -> tuple[list[int], Tensor]:
        return list(losses), torch.stack(list(losses.values())).cpu()

    def totals(self, grams: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        return grams, losses

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return combine(gathered, tasks, gradients, weights)

    def statistics(
        self,
        losses: dict[int, Tensor],
        dots: Tensor | None,
        sqnorms: Tensor | None,
        largest: Tensor,
        count: int,
        *,
        known: bool,
    ) -> Statistics:
        nothing = largest.new_empty(0)
        parts = [
            torch.stack(list(losses.values())),
            nothing if dots is None else dots,
            nothing if sqnorms is None else sqnorms,
            largest.reshape(1),
        ]
        host = torch.cat([t.to(largest.device, torch.float64, non_blocking=True) for t in parts]).cpu()
        values, v, squares, _ = host.split([len(t) for t in parts])
        if sqnorms is None:
            squares = torch.full_like(values, math.nan)
        finite = bool(torch.isfinite(host).all())
        return Statistics(
            list(losses), values, v, squares, known=known, sqnorms_known=sqnorms is not None, finite=finite
        )


def combine(
    gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """:meth:`Reducer.combine` where this process has the final gradients, or its shards or shares of them."""
    gathered.take_back()
    gathered.add(tasks, gradients)
    gathered.weights = weights[list(gathered.rows)]
    combined, dots, sqnorms = gathered.combine_dots()
    add_to_grad(gathered.params, combined)
    return dots, sqnorms
