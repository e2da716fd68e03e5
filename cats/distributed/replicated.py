"""The reducer for processes with a replica of all parameters each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from cats import ops
from cats.agreement import meet
from cats.engines.pending import UnsupportedError
from cats.engines.per_task import TaskGradients
from cats.gradients import Gradient, add, add_to_grad, take_grads
from cats.weighting import Weighting
from cats.weighting.checks import needs_per_task

from .buckets import BucketedMean
from .communication import Communication
from .interface import BeforeLastPass
from .local import combine
from .processes import Processes
from .shares import Shares


class Replicated(Processes):
    """Replicas take the same step, with the mean of their gradients.

    Each backward() call all-reduces one gradient: that of the weighted loss, bucket by bucket while the backward pass
    forms it, or the combination ḡ of per-task gradients. The squared norms ‖g_n‖² would need one more for every task,
    so they are not known. Only for weightings that need the mean gradients themselves, their inner products or norms,
    or that find their weights after the gradients, the processes exchange all K gradients, so that each has a share of
    the elements of the means.
    """

    def __init__(self, communication: Communication) -> None:
        super().__init__(communication)
        self._shares = False  # whether per-task gradients are kept as shares
        self._overlaps = True  # whether gradients are sent during the backward pass

    def check(
        self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting, *, per_task: bool, reason: str
    ) -> None:
        self._shares = per_task and (weighting.follows or needs_per_task(weighting) is not None)

    @property
    def _has_means(self) -> bool:
        return self._shares

    @property
    def _copies(self) -> int:
        return 1 if self._shares else self.communication.size

    def exchanged(
        self, gathered: TaskGradients, tasks: list[int], values: list[Tensor], gradients: list[Gradient], count: int
    ) -> tuple[list[int], list[Tensor], list[Gradient]]:
        if not self._shares:
            return tasks, values, gradients
        params = gathered.params
        self._meet(params)
        # How many processes have a loss of each task, and a gradient of each parameter.
        here = [float(n in tasks) for n in range(count)]
        here += [float(any(g[i] is not None for g in gradients)) for i in range(len(params))]
        holders = self.communication.sum(torch.tensor(here, device=params[0].device)).tolist()
        present = frozenset(i for i, some in enumerate(holders[count:]) if some)
        if isinstance(gathered.layout, Shares):  # of the gradients of earlier calls
            present |= gathered.layout.present
        layout = gathered.layout = Shares(params, gathered.shared, self.communication, present, gathered.groups)
        missing = [n for n in range(count) if holders[n] and n not in tasks] * gathered.halves
        zero = torch.zeros((), dtype=torch.float64, device=params[0].device)
        nothing: Gradient = [None] * len(params)
        parts = list(zip(tasks, values, gradients, strict=True)) + [(n, zero, nothing) for n in missing]
        if not parts:
            raise ValueError("backward() needs the loss of at least one task in at least one process")
        parts.sort(key=lambda part: part[0])  # all processes exchange the gradients of the tasks in this order
        gradients.clear()
        shares = []
        for k, (n, value, gradient) in enumerate(parts):
            parts[k] = n, value, nothing  # frees the gradient
            shares.append(layout.scatter(gradient))
        return [n for n, _, _ in parts], [value for _, value, _ in parts], shares

    @contextmanager
    def averaged(self, params: Sequence[Tensor]) -> Iterator[BeforeLastPass]:
        call = self._call
        before = take_grads(params)  # put aside, because these gradients must not be averaged
        mean = BucketedMean(params, self.communication)  # before the meeting, because memory may not suffice
        agreed = False
        with ExitStack() as hooks:

            def before_last_pass() -> None:
                nonlocal agreed
                self._meet(params)
                agreed = True
                if self._overlaps:
                    hooks.enter_context(mean.filled_by_backward())

            try:
                yield before_last_pass
            except Exception as error:
                if agreed:  # the others wait for gradients. Afterwards all meet again.
                    mean.finish([None] * len(params), failed=True)
                    self._call = call
                    if isinstance(error, UnsupportedError):  # too late for another engine: the others stop here
                        raise RuntimeError(str(error)) from error
                raise
        if not agreed:  # there was no backward pass
            self._meet(params)
        average = mean.finish(take_grads(params))
        self._overlaps &= not mean.sent_twice
        if average is None:
            assert call is not None
            meet(call.describe(), call.device, None, wish=False, group=self.communication.group)
        assert average is not None, "a process failed, so the meeting raised an error"
        self._exchanged = True
        add_to_grad(params, before)
        add_to_grad(params, average)

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        if self._shares:
            return combine(gathered, tasks, gradients, weights)
        part: Gradient = [None] * len(gathered.params)
        mean = BucketedMean(gathered.params, self.communication)
        if gradients:  # before the meeting, because this needs memory for a whole gradient and may fail
            part = ops.combine(gradients, weights[tasks], backend=gathered.backend)
        self._meet(gathered.params)
        average = mean.finish(part)
        assert average is not None, "no process fails between the meeting and here"
        self._exchanged = True
        gathered.add(tasks, gradients)
        gathered.combined = average if gathered.combined is None else add(gathered.combined, average)
        add_to_grad(gathered.params, average)  # it may become p.grad itself, so this comes after the sum
        return (gathered.dots(gathered.combined) if gathered.rows else None), None
