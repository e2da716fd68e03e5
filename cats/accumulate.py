"""The losses and gradients that backward() calls accumulate between two steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .distributed import Reducer, Statistics
from .engines.losses import Loss
from .engines.per_task import TaskGradients, task_gradients
from .engines.weighted import weighted_backward
from .gradients import Gradient, add_to_grad, dense, largest
from .tasks import Task
from .weighting import Weighting
from .weighting.checks import checked_weights
from .weighting.rounding import precision, without_rounding_noise


class Accumulation:
    """The losses, gradients, dots and norms of the backward() calls since the last step().

    Several calls give the same result as one call with a large batch: the losses of a task are added, and so are its
    gradients. Dots <g_n, ḡ> and squared norms ‖g_n‖² are those of the sums. ḡ = Σ w_n g_n is added to ``p.grad``, which
    may hold gradients that other code wrote there.

    Args:
        params: the parameters that require grad, the shared ones first.
        shared: how many of them are shared. Only these enter dots, norms and the Gram matrix.
        tasks: the names of all N tasks.
        weighting: the optimizer's weighting. If it needs the Gram matrix, it computes the weights here.
        reducer: combines gradients and numbers over the processes.
        per_task: whether to compute one gradient per task. If not, one backward pass of the weighted loss is enough.
        backend: the backend of :mod:`cats.ops`, or None.

    Attributes:
        calls: the number of backward() calls.
        losses: {task index: loss, 0-d float64 on the device}, in the order of the tasks.
        weights: (N,) float64 on the CPU, the weights of all tasks in ḡ. None before per-task gradients are combined.
        scale: GradScaler's scale, 0-d, if a scaler is used.
    """

    def __init__(
        self,
        params: list[Tensor],
        shared: int,
        tasks: Sequence[Task],
        *,
        weighting: Weighting,
        reducer: Reducer,
        per_task: bool,
        backend: str | None,
    ) -> None:
        self.params = params
        self.tasks = tasks
        self.weighting = weighting
        self.reducer = reducer
        self.per_task = per_task
        self.calls = 0
        self.losses: dict[int, Tensor] = {}
        self.weights: Tensor | None = None
        self.scale: Tensor | None = None
        self._gradients = TaskGradients(params, shared, cross_batch=weighting.cross_batch, backend=backend)
        self._dots: Tensor | None = None  # (K,) float64 on the device
        self._sqnorms: Tensor | None = None  # (K,) float64 on the device
        self._largest = torch.zeros((), device=params[0].device)  # max |p.grad|, 0-d
        self._state_before_gram: dict[str, Any] | None = None  # the weighting's state before it saw a Gram matrix
        self._freed = False

    def copy(self) -> Accumulation:
        """A copy to which more losses can be added while this one stays as it is."""
        twin = copy.copy(self)
        twin.losses = dict(self.losses)
        twin._gradients = self._gradients.copy()
        return twin

    def check(self, tasks: list[int], scaler: torch.amp.GradScaler | None) -> None:
        """Checks that losses of these tasks can be added, and takes the scale of the GradScaler.

        Raises:
            ValueError: there are no losses, or per-task gradients are due and no shared parameter requires grad.
            RuntimeError: earlier losses had a scaler and these have none, or the other way round. Or the reducer does
                not support the parameters or the weighting. Or a step() that failed has freed the K gradients.
        """
        if self._freed:
            raise RuntimeError("the last step() failed: call step() again, or zero_grad() to discard its gradients")
        scaled = scaler is not None and scaler.is_enabled()
        if self.losses and scaled != (self.scale is not None):
            raise RuntimeError("pass the GradScaler to every backward() between two steps, or to none of them")
        if scaler is not None and scaled:
            self.scale = self._gradients.scale = scaler.scale(torch.ones((), device=self.params[0].device))
        self.reducer.check(tasks, self.params, self.weighting, per_task=self.per_task)
        self.calls += 1
        if self.per_task and self._gradients.shared == 0:
            raise ValueError("no shared parameter requires grad")

    def add_weighted(self, tasks: list[int], losses: list[Loss], weights: Tensor) -> None:
        """Adds the gradient of Σ w_n L_n to ``p.grad``, in one backward pass.

        Args:
            tasks: the index of the task of each loss. The loss of a task with two halves is their mean.
            losses: the single losses.
            weights: (N,) float64 on the CPU, the weights of all tasks.
        """
        known = self.checked(weights, list(range(len(self.tasks)))).tolist()
        shares = [known[n] / tasks.count(n) for n in tasks]
        with self.reducer.averaged(self.params) as before_last_pass:
            values = weighted_backward(
                losses,
                shares,
                self.params,
                scale=self.scale,
                names=self._names(tasks),
                whole=self.reducer.whole_backward,
                before_last_pass=before_last_pass,
            )
            self._check_sparse([[p.grad for p in self.params]])
        self._add_losses(tasks, values)
        self._largest = largest(self.params)

    def add_per_task(self, tasks: list[int], losses: list[Loss], weights: Tensor) -> None:
        """Forms one gradient g_n per task and adds Σ w_n g_n to ``p.grad``.

        Args:
            tasks: the index of the task of each loss. With ``cross_batch`` each task must have two losses.
            losses: the single losses.
            weights: (N,) float64 on the CPU, the weights of all tasks. If the weighting needs the Gram matrix, it
                computes new weights for the tasks present.
        """
        self._check_pairs(tasks)
        if not self.weighting.needs_gram:
            weights = self.checked(weights, list(range(len(self.tasks))))
        values, gradients = task_gradients(
            losses,
            self.params,
            scale=self.scale,
            names=self._names(tasks),
            whole=self.reducer.whole_backward,
        )
        self._check_sparse(gradients)
        gradients = [list(map(dense, gradient)) for gradient in gradients]
        self._add_losses(tasks, values)
        with torch.no_grad():
            if self.weighting.needs_gram:
                self._gradients.take_back()
                self._gradients.add(tasks, gradients)
                self.weights = self._weigh_by_gram(weights)
                add_to_grad(self.params, self._gradients.combination())
            else:
                self.weights = weights
                self._dots, self._sqnorms = self.reducer.combine(self._gradients, tasks, gradients, weights)
        self._largest = largest(self.params)

    def _weigh_by_gram(self, weights: Tensor) -> Tensor:
        """The weights of all tasks, after new ones were computed from the Gram matrix of the tasks present.

        Has one host sync.
        """
        gram = self._gradients.gram()
        losses = torch.stack(list(self.losses.values()))
        host = torch.cat([gram, losses.to(gram.device)[None]]).cpu()
        gram, losses = host[:-1], host[-1]
        # An earlier call may have shown the weighting the Gram matrix of a part of these gradients. Undo that.
        if self._state_before_gram is None:
            self._state_before_gram = self.weighting.state_dict()
        else:
            self.weighting.load_state_dict(self._state_before_gram)
        if torch.isfinite(gram).all():
            tolerance = self.weighting.tolerance
            if tolerance is None:
                tolerance = len(gram) * precision({p.dtype for p in self.params})
            shown = without_rounding_noise(gram, tolerance)
            present = self.checked(self.weighting.weights_from_gram(shown, losses), list(self.losses))
        else:  # step() will be skipped, and solvers fail on such a matrix
            present = torch.ones_like(losses)
        self._gradients.weights, self._dots, self._sqnorms = present, gram @ present, gram.diagonal()
        weights = weights.clone()
        weights[list(self.losses)] = present
        return weights

    def checked(self, weights: Any, tasks: list[int]) -> Tensor:
        """Weights of these tasks, float64 on the CPU. For errors see :func:`cats.weighting.checks.checked_weights`."""
        exact = all(p.dtype == torch.float64 for p in self.params)
        limit = torch.finfo(torch.float64 if exact else torch.float32).max
        return checked_weights(weights, self._names(tasks), limit)

    def _check_sparse(self, gradients: Iterable[Gradient]) -> None:
        # Most steps of such a weighting may need no per-task gradients, but one of the next steps does.
        if self.weighting.period and any(g is not None and g.is_sparse for gradient in gradients for g in gradient):
            raise TypeError(
                f"a parameter has a sparse gradient, which steps with per-task gradients cannot use, and "
                f"{type(self.weighting).__name__} needs such steps: use sparse=False in embeddings"
            )

    def _add_losses(self, tasks: list[int], values: list[Tensor]) -> None:
        for n, value in zip(tasks, values, strict=True):
            value = value.to(self.params[0].device) / tasks.count(n)
            self.losses[n] = self.losses[n] + value if n in self.losses else value
        self.losses = dict(sorted(self.losses.items()))

    def _check_pairs(self, tasks: list[int]) -> None:
        if self.weighting.cross_batch:
            for n in tasks:
                if tasks.count(n) != 2:
                    raise ValueError(
                        f"loss of task {self.tasks[n]!r}: this step needs a pair of losses from two independent halves "
                        "of its batch (cross_batch, needs_task_gradients)"
                    )

    def _names(self, tasks: list[int]) -> list[str]:
        return [f"task {self.tasks[n]!r}" for n in tasks]

    def statistics(self, found_inf: Tensor | None) -> Statistics:
        """The numbers of the step over all processes, on the host. Reading them is the only host sync of a step.

        Args:
            found_inf: from GradScaler, one element. It is positive if a gradient is not finite. None: no GradScaler.
        """
        verdict = self._largest if found_inf is None else torch.where(found_inf > 0, math.inf, self._largest)
        return self.reducer.statistics(self.losses, self._dots, self._sqnorms, verdict, len(self.tasks))

    def free(self) -> None:
        """Frees the K gradients, so that the base optimizer can use their memory. The numbers stay."""
        self._gradients.free()
        self._freed = self.per_task

    def discard(self) -> None:
        """Restores the state that the weighting had before it saw these gradients."""
        if self._state_before_gram is not None:
            self.weighting.load_state_dict(self._state_before_gram)
