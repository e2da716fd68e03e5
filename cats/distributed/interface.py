"""What a reducer does, and what it exchanges with the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from cats.agreement import Description
from cats.engines.per_task import TaskGradients
from cats.gradients import Gradient
from cats.weighting import Weighting

# Called before the last backward pass of a call.
BeforeLastPass: TypeAlias = Callable[[], None]


@dataclass
class Statistics:
    """The numbers of one step over all processes: (K,) float64 on the CPU, for the K tasks that took part."""

    tasks: list[int]  # indices, ascending
    losses: Tensor
    dots: Tensor  # <g_n, ḡ>, valid only if known
    sqnorms: Tensor  # ‖g_n‖², or nan if they are not known.
    known: bool  # whether all processes know <g_n, ḡ> of their losses
    sqnorms_known: bool
    finite: bool  # whether all these numbers and the combined gradient are finite

    def nonfinite_tasks(self) -> list[int]:
        """The tasks whose loss is not finite or, if norms are known, whose gradient is not."""
        seen = self.losses + self.sqnorms if self.sqnorms_known else self.losses
        return [n for n, finite in zip(self.tasks, torch.isfinite(seen).tolist(), strict=True) if not finite]


@dataclass
class Call:
    """What a process does next, for the comparison with the other processes.

    Attributes:
        step: the number of the step, from 1.
        device: where small all-reduces take place.
        describe: what all processes compare in every call. It must be cheap.
        describe_settings: what they compare now and then.
    """

    step: int
    device: torch.device
    describe: Callable[[], Description]
    describe_settings: Callable[[], Description]


class Reducer(Protocol):
    """How gradients and numbers are combined over the processes.

    Attributes:
        names_nonfinite_task: whether per-task gradients show which task has a non-finite gradient.
        averages: whether gradients in ``p.grad`` are averaged after the backward pass, and so are not final in it.
        whole_backward: whether hooks of a wrapper around the model (DistributedDataParallel, fully_shard) reduce the
            gradients. They need one backward pass through the whole graph of all losses of a call.
    """

    @property
    def names_nonfinite_task(self) -> bool: ...

    @property
    def averages(self) -> bool: ...

    @property
    def whole_backward(self) -> bool: ...

    def together(self, call: Call) -> AbstractContextManager[None]:
        """A context manager for a call that all processes must make. If one of them fails inside, all raise.

        Inside, the methods below compare the processes before they exchange anything whose size could differ.

        Raises:
            RuntimeError: another process failed, or makes another call, or the processes differ.
        """

    def check(
        self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting, *, per_task: bool, reason: str
    ) -> None:
        """Checks the arguments of a backward() call: the tasks of its losses, the parameters and the weighting.

        Args:
            per_task: whether the call computes per-task gradients.
            reason: why this engine was chosen, for error messages.

        Raises:
            ValueError: losses are missing.
            RuntimeError: the parameters or the weighting are not supported.
        """

    def averaged(self, params: Sequence[Tensor]) -> AbstractContextManager[BeforeLastPass]:
        """A context manager. Gradients added to ``p.grad`` inside are averaged over the processes at the end.

        It gives a function that must be called before the last backward pass, if there is any.
        """

    def exchanged(
        self, gathered: TaskGradients, tasks: list[int], values: list[Tensor], gradients: list[Gradient], count: int
    ) -> tuple[list[int], list[Tensor], list[Gradient]]:
        """The tasks, losses and per-task gradients to add to those gathered.

        If the weighting needs inner products of the gradients with each other, replicas exchange all K gradients here.
        Then ``gathered`` gets a layout, each process gets its share of the mean gradients, and the tasks of all
        processes are added, with a loss of 0.

        Args:
            gathered: the gradients of earlier calls.
            tasks: the index of the task of each gradient.
            values: the losses, 0-d.
            gradients: the new gradients. The list may be emptied.
            count: the number N of tasks.
        """

    def loss_totals(self, losses: dict[int, Tensor], params: Sequence[Tensor], count: int) -> tuple[list[int], Tensor]:
        """The losses over all processes, with one host sync: the tasks that have one, ascending, and (K,) on the CPU.

        Args:
            losses: {task index: loss, 0-d float64} of this process.
            params: those of the optimizer.
            count: the number N of tasks.
        """

    def totals(self, grams: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Gram matrices and losses over all processes, from those of what each process has: (G, K, K) and (K,)."""

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Adds per-task gradients to those gathered, and updates the part of ``p.grad`` that is their combination ḡ.

        With several processes, ḡ is the mean over them.

        Args:
            gathered: the gradients of earlier calls.
            tasks: the index of the task of each new gradient.
            gradients: the new gradients. The list is emptied.
            weights: (N,) float64 on the CPU, the weights of all tasks.

        Returns:
            <g_n, ḡ> and ‖g_n‖² of all gradients gathered in this process, (K,) float64 on the device, or None if they
            are not known.
        """

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
        """Combines the numbers of all processes and reads them back to the host, with one host sync.

        Args:
            losses: {task index: loss, 0-d float64}, ascending.
            dots, sqnorms: as :meth:`combine` returned them. None at steps that do not compute <g_n, ḡ>.
            largest: 0-d on the device, max |p.grad|. If it is not finite, no process steps.
            count: the number N of tasks.
            known: whether this process knows <g_n, ḡ> of its tasks. They are None if it has no tasks.
        """
