"""The weights of a step, where they follow from its losses or from its Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .distributed import Reducer
from .engines.per_task import TaskGradients
from .tasks import Task
from .weighting import Weighting
from .weighting.checks import checked_weights
from .weighting.rounding import precision, without_rounding_noise


class StepWeights:
    """Asks the weighting for the weights of a step, over all processes.

    Several backward() calls of a step ask again, with all losses so far. What the weighting has learnt from the losses
    of the earlier calls alone is undone before.

    Args:
        weighting: the optimizer's.
        reducer: combines numbers over the processes.
        tasks: the names of all N tasks.
        params: the parameters that require grad.
    """

    def __init__(self, weighting: Weighting, reducer: Reducer, tasks: Sequence[Task], params: Sequence[Tensor]) -> None:
        self._weighting, self._reducer, self._tasks, self._params = weighting, reducer, tasks, params
        self._before: dict[str, Any] | None = None  # the weighting's state before it saw numbers of this step

    def from_gram(
        self, gradients: TaskGradients, losses: dict[int, Tensor], weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float | None]:
        """The weights of all tasks after new ones were computed from the Gram matrix of the tasks present.

        If there are groups of parameters, each has its own weights, and these are the means over the groups.
        ``gradients`` gets the weights of its tasks. Has one host sync.

        Args:
            gradients: of the tasks present.
            losses: {task index: loss}, in their order.
            weights: (N,) float64 on the CPU, those of before.

        Returns:
            (N,) weights; <g_n, ḡ> and ‖g_n‖² of what this process has of the gradients, (K,) each; and ‖ḡ‖² over all
            processes, if the weights differ between groups of parameters.
        """
        here, tasks = gradients.gram(), list(losses)
        grams, values = self._reducer.totals(here, torch.stack(list(losses.values())))
        host = torch.cat([grams.flatten(), values.to(grams.device)]).cpu()
        grams, values = host[: -len(tasks)].view(grams.shape), host[-len(tasks) :]
        self._start_again()
        if torch.isfinite(host).all():
            tolerance = self._weighting.tolerance
            if tolerance is None:
                tolerance = len(tasks) * precision({p.dtype for p in self._params})
            shown = torch.stack([without_rounding_noise(gram, tolerance) for gram in grams])
            rows = self._weighting.weights_from_grams(shown, values, tasks)
            if len(rows) != len(grams):
                raise ValueError(
                    f"the weighting returned weights for {len(rows)} groups of parameters, not {len(grams)}"
                )
            by_group = torch.stack([self._checked(row, tasks) for row in rows])
        else:  # step() will be skipped, and solvers fail on such numbers
            by_group = torch.ones_like(grams[:, 0])
        grouped = len(by_group) > 1
        gradients.weights = by_group if grouped else by_group[0]
        sqnorm = torch.einsum("gi,gij,gj->", by_group, grams, by_group).item() if grouped else None
        dots = torch.einsum("gij,gj->i", here, by_group.to(here.device))
        return _replaced(weights, tasks, by_group.mean(0)), dots, here.diagonal(dim1=1, dim2=2).sum(0), sqnorm

    def from_losses(self, losses: dict[int, Tensor], weights: Tensor) -> Tensor:
        """The weights of all tasks after new ones were computed from the losses of the tasks present.

        Has one host sync.

        Args:
            losses: {task index: loss} of this process.
            weights: (N,) float64 on the CPU, those of before.
        """
        tasks, values = self._reducer.loss_totals(losses, self._params, len(self._tasks))
        self._start_again()
        if not tasks or not torch.isfinite(values).all():  # step() will raise, or be skipped
            return weights
        return _replaced(weights, tasks, self._checked(self._weighting.weights_from_losses(values, tasks), tasks))

    def checked_all(self, weights: Any) -> Tensor:
        """The weights of all tasks, float64 on the CPU. Errors: see :func:`cats.weighting.checks.checked_weights`."""
        return self._checked(weights, list(range(len(self._tasks))))

    def _checked(self, weights: Any, tasks: list[int]) -> Tensor:
        exact = all(p.dtype == torch.float64 for p in self._params)
        limit = torch.finfo(torch.float64 if exact else torch.float32).max
        return checked_weights(weights, [f"task {self._tasks[n]!r}" for n in tasks], limit)

    def _start_again(self) -> None:
        if self._before is None:
            self._before = self._weighting.state_dict()
        else:
            self._weighting.load_state_dict(self._before)

    def discard(self) -> None:
        """Restores the state that the weighting had before this step."""
        if self._before is not None:
            self._weighting.load_state_dict(self._before)


def _replaced(weights: Tensor, tasks: list[int], present: Tensor) -> Tensor:
    weights = weights.clone()
    weights[tasks] = present
    return weights
