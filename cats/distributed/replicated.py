"""The reducer for processes with a replica of all parameters each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from cats import ops
from cats.agreement import meet
from cats.engines.per_task import TaskGradients
from cats.gradients import Gradient, add, add_to_grad, take_grads
from cats.weighting import Weighting

from .buckets import BucketedMean
from .interface import BeforeLastPass
from .processes import Processes


class Replicated(Processes):
    """Replicas take the same step, with the mean of their gradients.

    Each backward() call all-reduces one gradient: that of the weighted loss, bucket by bucket while the backward pass
    forms it, or the combination ḡ of per-task gradients. The squared norms ‖g_n‖² would need one more for every task,
    so they are not known.
    """

    def check(self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting, *, per_task: bool) -> None:
        if weighting.needs_gram or weighting.cross_batch:
            what = "cross_batch" if weighting.cross_batch else "a weighting that needs the Gram matrix"
            raise RuntimeError(f"{what} is not supported with several processes")

    @contextmanager
    def averaged(self, params: Sequence[Tensor]) -> Iterator[BeforeLastPass]:
        call = self._call
        before = take_grads(params)  # put aside, because these gradients must not be averaged
        mean = BucketedMean(params, self.communication)  # before the meeting, because memory may not suffice
        agreed = False
        with ExitStack() as hooks:

            def before_last_pass(once: bool) -> None:
                nonlocal agreed
                self._meet(params)
                agreed = True
                if once:
                    hooks.enter_context(mean.filled_by_backward())

            try:
                yield before_last_pass
            except Exception:
                if agreed:  # the others wait for gradients. Afterwards all meet again.
                    mean.finish(failed=True)
                    self._call = call
                raise
        if not agreed:  # there was no backward pass
            self._meet(params)
        for i, gradient in enumerate(take_grads(params)):
            mean.put(i, gradient)
        average = mean.finish()
        if average is None:
            assert call is not None
            meet(call.describe(), call.device, None, wish=False, group=self.communication.group)
        assert average is not None, "a process failed, so the meeting raised an error"
        add_to_grad(params, before)
        add_to_grad(params, average)

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor | None, None]:
        part: Gradient = [None] * len(gathered.params)
        mean = BucketedMean(gathered.params, self.communication)
        if gradients:  # before the meeting, because this needs memory for a whole gradient and may fail
            part = ops.combine(gradients, weights[tasks], backend=gathered.backend)
        for i, gradient in enumerate(part):
            mean.put(i, gradient)
        self._meet(gathered.params)
        average = mean.finish()
        assert average is not None, "no process fails between the meeting and here"
        gathered.add(tasks, gradients)
        gathered.combined = average if gathered.combined is None else add(gathered.combined, average)
        add_to_grad(gathered.params, average)  # it may become p.grad itself, so this comes after the sum
        return (gathered.dots(gathered.combined) if gathered.rows else None), None
