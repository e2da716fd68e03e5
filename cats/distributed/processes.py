"""What the reducers for several processes have in common: the processes meet, and add up the numbers of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cats.agreement import compare_parameters, meet

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

    @contextmanager
    def together(self, call: Call) -> Iterator[None]:
        self._call = call
        try:
            yield
        except Exception as error:
            if self._call is not None:
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

    def statistics(
        self, losses: dict[int, Tensor], dots: Tensor | None, sqnorms: Tensor | None, largest: Tensor, count: int
    ) -> Statistics:
        self._meet([])
        return self._sum(losses, dots, sqnorms, largest, count, copies=self.communication.size)

    def _sum(
        self,
        losses: dict[int, Tensor],
        dots: Tensor | None,
        sqnorms: Tensor | None,
        largest: Tensor,
        count: int,
        *,
        copies: int,
    ) -> Statistics:
        """:meth:`Reducer.statistics`, where dots and squared norms are the sums over the processes / ``copies``."""
        here = list(losses)
        # Four rows: losses, dots, squared norms, and 1 for each task of this process. `largest` is the last column of
        # the first row: the sum over the processes is finite only if all are.
        local = torch.zeros(4, count + 1, dtype=torch.float64, device=largest.device)
        if here:
            local[0, here] = torch.stack(list(losses.values())).to(local.device)
            for row, numbers in (1, dots), (2, sqnorms):
                if numbers is not None:
                    local[row, here] = numbers.to(local.device)
            local[3, here] = 1.0
        local[0, -1] = largest
        host = self.communication.sum(local).cpu()
        tasks = host[3].nonzero()[:, 0].tolist()
        if not tasks:
            raise ValueError("backward() needs the loss of at least one task in at least one process")
        values, (v, squares) = host[0, tasks] / self.communication.size, host[1:3, tasks] / copies
        return Statistics(
            tasks,
            values,
            v,
            torch.full_like(v, math.nan) if sqnorms is None else squares,
            sqnorms_known=sqnorms is not None,
            finite=bool(torch.isfinite(host).all()),
        )
