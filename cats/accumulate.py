"""What the backward() calls between two steps gather."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .distributed import Reducer, Statistics
from .engines.losses import Loss
from .engines.per_task import TaskGradients, task_gradients
from .engines.weighted import weighted_backward
from .gradients import add_to_grad, largest
from .weighting import Weighting


class Accumulation:
    """The losses, gradients, dots and norms of the backward() calls since the last step().

    Sums over the calls are those of one large batch: losses and gradients of a task add up, and dots and norms are
    those of the sums. ``p.grad`` receives ḡ = Σ w_n g_n on top of what other code wrote there.

    Args:
        params: the parameters that require grad, the shared ones first.
        shared: how many of them are shared. Only these enter dots, norms and the Gram matrix.
        weighting: the weights' rule. Needed here because some rules want the Gram matrix of this step's gradients.
        per_task: whether to form one gradient per task. Otherwise one backward pass of the weighted loss.
        backend: of :mod:`cats.ops`.

    Attributes:
        losses: {task index: loss, 0-d float64 on the device}, in the order of the tasks.
        weights: (N,) float64 on the CPU, the weights of all tasks that p.grad was combined with.
        scale: GradScaler's scale, 0-d, if a scaler is used.
    """

    def __init__(
        self, params: list[Tensor], shared: int, *, weighting: Weighting, per_task: bool, backend: str | None
    ) -> None:
        self.params = params
        self.per_task = per_task
        self.losses: dict[int, Tensor] = {}
        self.weights: Tensor | None = None
        self.scale: Tensor | None = None
        self._weighting = weighting
        self._gradients = TaskGradients(params, shared, cross_batch=weighting.cross_batch, backend=backend)
        self._dots: Tensor | None = None  # (K,) float64 on the device, as the squared norms
        self._sqnorms: Tensor | None = None
        self._largest = torch.zeros((), device="cpu")  # max |p.grad|, 0-d on the device
        self._before_gram: dict[str, Any] | None = None  # the weighting's state before it saw a Gram matrix

    def use_scaler(self, scaler: torch.amp.GradScaler | None) -> None:
        """Takes the scale of the GradScaler for the next losses.

        Raises:
            RuntimeError: earlier losses had a scaler and these have none, or the other way round.
        """
        scaled = scaler is not None and scaler.is_enabled()
        if self.losses and scaled != (self.scale is not None):
            raise RuntimeError("pass the GradScaler to every backward() between two steps, or to none of them")
        if scaler is not None and scaled:
            self.scale = self._gradients.scale = scaler.scale(torch.ones((), device=self.params[0].device))

    def add(self, tasks: list[int], losses: list[Loss], *, weights: Tensor, names: list[str], reducer: Reducer) -> None:
        """Adds the losses, and their gradients to ``p.grad``.

        Args:
            tasks: the index of the task of each loss.
            losses: the single losses.
            weights: (N,) float64 on the CPU, the weights of all tasks, as far as they are known before the gradients.
            names: what error messages call the losses.
            reducer: combines gradients over the processes.

        Raises:
            TypeError, ValueError: a loss is not what it should be, or not one of a pair where pairs are needed.
        """
        (self._add_per_task if self.per_task else self._add_weighted)(tasks, losses, weights, names, reducer)
        self._largest = largest(self.params)

    def _add_weighted(
        self, tasks: list[int], losses: list[Loss], weights: Tensor, names: list[str], reducer: Reducer
    ) -> None:
        """One backward pass of Σ w_n L_n. The loss of a task with two halves is their mean."""
        known = weights.tolist()
        shares = [known[n] / tasks.count(n) for n in tasks]
        with reducer.averaged(self.params):
            values = weighted_backward(losses, shares, self.params, scale=self.scale, names=names)
        self._add_losses(tasks, values)

    def _add_per_task(
        self, tasks: list[int], losses: list[Loss], weights: Tensor, names: list[str], reducer: Reducer
    ) -> None:
        """One gradient per task, then their combination."""
        self._check_per_task(tasks, names)
        values, gradients = task_gradients(losses, self.params, scale=self.scale, names=names)
        self._add_losses(tasks, values)
        with torch.no_grad():
            if self._weighting.needs_gram:
                self._gradients.take_back()
                self._gradients.add(tasks, gradients)
                self.weights = self._weigh_by_gram(weights)
                add_to_grad(self.params, self._gradients.combination())
            else:
                self.weights = weights
                self._dots, self._sqnorms = reducer.combine(self._gradients, tasks, gradients, weights)

    def _weigh_by_gram(self, weights: Tensor) -> Tensor:
        """The weights of all tasks, those of the tasks present from their Gram matrix. One host sync."""
        gram = self._gradients.gram()
        losses = torch.stack(list(self.losses.values()))
        host = torch.cat([gram, losses.to(gram.device)[None]]).cpu()
        gram, losses = host[:-1], host[-1]
        # An earlier call may have shown the weighting the Gram matrix of a part of these gradients.
        if self._before_gram is None:
            self._before_gram = self._weighting.state_dict()
        else:
            self._weighting.load_state_dict(self._before_gram)
        if torch.isfinite(gram).all():
            present = self._weighting.weights_from_gram(gram, losses).detach().to("cpu", torch.float64)
            if present.shape != losses.shape:
                raise ValueError(
                    f"the weighting returned weights of shape {tuple(present.shape)} for {len(losses)} tasks"
                )
        else:  # step() will be skipped, and few solvers survive such a matrix
            present = torch.ones_like(losses)
        self._gradients.weights, self._dots, self._sqnorms = present, gram @ present, gram.diagonal()
        weights = weights.clone()
        weights[list(self.losses)] = present
        return weights

    def _add_losses(self, tasks: list[int], values: list[Tensor]) -> None:
        for n, value in zip(tasks, values, strict=True):
            value = value.to(self.params[0].device) / tasks.count(n)
            self.losses[n] = self.losses[n] + value if n in self.losses else value
        self.losses = dict(sorted(self.losses.items()))

    def _check_per_task(self, tasks: list[int], names: list[str]) -> None:
        if self._gradients.shared == 0:
            raise ValueError("no shared parameter requires grad")
        if self._weighting.cross_batch:
            for n, name in zip(tasks, names, strict=True):
                if tasks.count(n) != 2:
                    raise ValueError(
                        f"loss of {name}: this step needs a pair of losses from two independent halves of the task's "
                        "batch (cross_batch, needs_task_gradients)"
                    )

    def statistics(self, reducer: Reducer, found_inf: Tensor | None, count: int) -> Statistics:
        """The numbers of the step on the host, over all processes. This is the only host sync of a step.

        Args:
            reducer: combines the numbers over the processes.
            found_inf: GradScaler's verdict, one element; positive if a gradient is not finite.
            count: the number N of tasks.
        """
        verdict = self._largest if found_inf is None else torch.where(found_inf > 0, float("inf"), self._largest)
        verdict = verdict.to(self.params[0].device)
        return reducer.statistics(self.losses, self._dots, self._sqnorms, verdict, count)

    def free(self) -> None:
        """Lets go of the K gradients, so that the base optimizer's step has their memory."""
        self._gradients.free()

    def discard(self) -> None:
        """Gives the weighting back the state that it had before these gradients."""
        if self._before_gram is not None:
            self._weighting.load_state_dict(self._before_gram)
