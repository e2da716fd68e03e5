"""What the reducers for several processes have in common: the processes meet, and add up the numbers of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cats.agreement import compare_parameters, meet
from cats.engines.per_task import TaskGradients
from cats.gradients import Gradient

from .communication import Communication
from .interface import Call, Statistics


class Processes:
    """Several processes that take the same steps, each with its own losses.

    Before they exchange gradients or numbers, all processes meet in an all-reduce of four numbers, see
    :mod:`cats.agreement`. It always has the same size, so processes that differ or fail end with an error there, where
    otherwise they would wait for each other. At the first call, and at steps 2, 4, 8, ..., 64, 100, 200, ..., they also
    compare all settings and the parameters. A process that dies is noticed only by the timeout of torch.distributed.
    """

    names_nonfinite_task = False
    averages = True
    whole_backward = False

    def __init__(self, communication: Communication) -> None:
        self.communication = communication
        self._call: Call | None = None  # the current call, until the processes have met
        self._compared = 0  # the step of the last comparison of everything; 0 before the first one
        self._exchanged = False  # whether the processes have met in this call, and exchanged all that it needs

    @contextmanager
    def together(self, call: Call) -> Iterator[None]:
        self._call, self._exchanged = call, False
        try:
            yield
        except Exception as error:
            # Before the meeting of this call, or at that of the next one.
            if self._exchanged or self._call is not None:
                meet(call.describe(), call.device, error, wish=False, group=self.communication.group)
            raise
        finally:
            self._call = None

    def _meet(self, params: Sequence[Tensor], **more: str) -> Call:
        """Compares the processes, before the first exchange of a call whose size could differ between them.

        Args:
            params: compared now and then.
            more: further texts to compare in this call, by name.
        """
        call, self._call = self._call, None
        assert call is not None, "collectives are used inside together() only"
        now_and_then = call.step % 100 == 0 or (call.step < 100 and call.step.bit_count() == 1)
        due = not self._compared or (now_and_then and call.step != self._compared)
        group = self.communication.group
        if meet({**call.describe(), **more}, call.device, None, wish=due, group=group):
            meet(call.describe_settings(), call.device, None, wish=False, group=group)
            self._compare_parameters(params)
            self._compared = call.step
        return call

    def _compare_parameters(self, params: Sequence[Tensor]) -> None:
        compare_parameters(params, self.communication.group)

    @property
    def _has_means(self) -> bool:
        """Whether this process has parts of the mean gradients of the tasks, not the gradients of its own losses."""
        return False

    @property
    def _copies(self) -> int:
        """Inner products are sums over the processes / this."""
        return self.communication.size

    def exchanged(
        self, gathered: TaskGradients, tasks: list[int], values: list[Tensor], gradients: list[Gradient], count: int
    ) -> tuple[list[int], list[Tensor], list[Gradient]]:
        return tasks, values, gradients

    def loss_totals(self, losses: dict[int, Tensor], params: Sequence[Tensor], count: int) -> tuple[list[int], Tensor]:
        call = self._call
        if call is not None:  # they have not met yet
            self._meet(params, **{"losses before gradients": "yes"})
            self._call = call  # and they meet again before they exchange gradients
        here = list(losses)
        local = torch.zeros(2, count, dtype=torch.float64, device=params[0].device)
        if here:
            local[0, here] = torch.stack(list(losses.values())).to(local.device)
            local[1, here] = 1.0
        host = self.communication.sum(local).cpu()
        tasks = host[1].nonzero()[:, 0].tolist()
        return tasks, host[0, tasks] / self.communication.size

    def totals(self, grams: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        total = self.communication.sum(torch.cat([grams.flatten(), losses.to(grams.device)]))
        inner, values = total.split([grams.numel(), len(losses)])
        return inner.view_as(grams) / self._copies, values / self.communication.size

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
        self._meet([], **self._compared_in_step())
        here = list(losses)
        if not self._has_means:  # the norm of a mean does not follow from the norms of its parts
            sqnorms = None
        # Four rows: losses, dots, squared norms, and 1 for each task of this process. In the last column: `largest`,
        # because the sum over the processes is finite only if all are, and what this process does not know.
        local = torch.zeros(4, count + 1, dtype=torch.float64, device=largest.device)
        if here:
            local[0, here] = torch.stack(list(losses.values())).to(local.device)
            for row, numbers in (1, dots), (2, sqnorms):
                if numbers is not None:
                    local[row, here] = numbers.to(local.device)
            local[3, here] = 1.0
        local[0, -1] = largest
        local[1, -1] = float(not known)
        local[2, -1] = float(bool(here) and sqnorms is None)
        host = self.communication.sum(local).cpu()
        tasks = host[3].nonzero()[:, 0].tolist()
        if not tasks:
            raise ValueError("backward() needs the loss of at least one task in at least one process")
        values, (v, squares) = host[0, tasks] / self.communication.size, host[1:3, tasks] / self._copies
        sqnorms_known = not host[2, -1]
        return Statistics(
            tasks,
            values,
            v,
            squares if sqnorms_known else torch.full_like(v, math.nan),
            known=not host[1, -1],
            sqnorms_known=sqnorms_known,
            finite=bool(torch.isfinite(host).all()),
        )

    def _compared_in_step(self) -> dict[str, str]:
        """Further texts that the processes compare in step()."""
        return {}
