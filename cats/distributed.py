"""Reducers: how gradients and statistics are combined over the processes.

There are two classes with the same methods: :class:`Local` for one process, and :class:`Replicated` for several
processes with a replica of the parameters each. Sharded parameters (DTensor) are refused. They would need a third
class, which combines the local shards as :class:`Local` does and adds up the dots and norms of all processes.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from . import ops
from .agreement import Description, compare_parameters, meet
from .engines.per_task import TaskGradients
from .gradients import Gradient, add, add_to_grad, dense, take_grads
from .weighting import Weighting


@dataclass
class Statistics:
    """The numbers of one step over all processes: (K,) float64 on the CPU, for the K tasks that took part."""

    tasks: list[int]  # indices, ascending
    losses: Tensor
    dots: Tensor  # <g_n, ḡ>. dots and sqnorms are valid only if the step computed per-task gradients.
    sqnorms: Tensor  # ‖g_n‖², or nan if they are not known.
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
    """How gradients and numbers are combined over the processes. :class:`Local` and :class:`Replicated` do it."""

    names_nonfinite_task: bool  # whether per-task gradients show which task has a non-finite gradient

    def together(self, call: Call) -> AbstractContextManager[None]:
        """A context manager for a call that all processes must make. If one of them fails inside, all raise.

        Inside, the methods below compare the processes before they exchange anything whose size could differ.

        Raises:
            RuntimeError: another process failed, or makes another call, or the processes differ.
        """

    def check(self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting) -> None:
        """Checks the arguments of a backward() call: the tasks of its losses, the parameters and the weighting.

        Raises:
            ValueError: losses are missing.
            RuntimeError: the parameters or the weighting are not supported.
        """

    def averaged(self, params: Sequence[Tensor]) -> AbstractContextManager[None]:
        """A context manager. Gradients added to ``p.grad`` inside are averaged over the processes at the end."""

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
        self, losses: dict[int, Tensor], dots: Tensor | None, sqnorms: Tensor | None, largest: Tensor, count: int
    ) -> Statistics:
        """Combines the numbers of all processes and reads them back to the host, with one host sync.

        Args:
            losses: {task index: loss, 0-d float64}, ascending.
            dots, sqnorms: as :meth:`combine` returned them. None at steps without per-task gradients.
            largest: 0-d on the device, max |p.grad|. If it is not finite, no process steps.
            count: the number N of tasks.
        """


class Local:
    """One process: there is nothing to reduce."""

    names_nonfinite_task = True

    def together(self, call: Call) -> AbstractContextManager[None]:
        return nullcontext()

    def check(self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting) -> None:
        if not tasks:
            raise ValueError("backward() needs the loss of at least one task")

    def averaged(self, params: Sequence[Tensor]) -> AbstractContextManager[None]:
        return nullcontext()

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        gathered.take_back()
        gathered.add(tasks, gradients)
        gathered.weights = weights[list(gathered.rows)]
        combined, dots, sqnorms = gathered.combine_dots()
        add_to_grad(gathered.params, combined)
        return dots, sqnorms

    def statistics(
        self, losses: dict[int, Tensor], dots: Tensor | None, sqnorms: Tensor | None, largest: Tensor, count: int
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
        return Statistics(
            list(losses), values, v, squares, sqnorms_known=sqnorms is not None, finite=bool(torch.isfinite(host).all())
        )


class Replicated:
    """Several processes, each with a replica of all parameters and with its own losses.

    All take the same step, with the mean of their gradients. Each backward() call has one all-reduce of the combined
    gradient, after it is formed. The squared norms ‖g_n‖² would need one more for every task, so they are not known.

    Before that, all processes meet in an all-reduce of four numbers, see :mod:`cats.agreement`. It always has the same
    size, so processes that differ or fail end with an error there, where otherwise they would wait for each other. At
    the first call, and at steps 2, 4, 8, ..., 64, 100, 200, ..., they also compare all settings and the parameters. A
    process that dies, or fails after the meeting, is noticed only by the timeout of torch.distributed.

    DistributedDataParallel cannot be used instead. It averages gradients while they are formed, so it does not see
    per-task gradients, and it fails if K forward passes come before K backward passes.
    """

    names_nonfinite_task = False

    def __init__(self) -> None:
        self._call: Call | None = None  # the current call, until the processes have met
        self._compared = 0  # the step of the last comparison of everything; 0 before the first one

    @contextmanager
    def together(self, call: Call) -> Iterator[None]:
        self._call = call
        try:
            yield
        except Exception as error:
            if self._call is not None:
                meet(call.describe(), call.device, error, wish=False)
            raise
        finally:
            self._call = None

    def check(self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting) -> None:
        if weighting.needs_gram or weighting.cross_batch:
            what = "cross_batch" if weighting.cross_batch else "a weighting that needs the Gram matrix"
            raise RuntimeError(f"{what} is not supported with several processes")
        if not self._compared and _in_distributed_data_parallel(params):
            raise RuntimeError(
                "the model is wrapped in DistributedDataParallel, which averages gradients too and does not see "
                "per-task gradients: train the module itself (model.module)"
            )

    def _meet(self, params: Sequence[Tensor]) -> None:
        """Compares the processes, before the first all-reduce of a call whose size could differ between them."""
        call, self._call = self._call, None
        assert call is not None, "collectives are used inside together() only"
        now_and_then = call.step % 100 == 0 or (call.step < 100 and call.step.bit_count() == 1)
        due = not self._compared or (now_and_then and call.step != self._compared)
        if meet(call.describe(), call.device, None, wish=due):
            meet(call.describe_settings(), call.device, None, wish=False)
            compare_parameters(params)
            self._compared = call.step

    @contextmanager
    def averaged(self, params: Sequence[Tensor]) -> Iterator[None]:
        before = take_grads(params)  # put aside, because these gradients must not be averaged
        yield
        self._meet(params)
        here = take_grads(params)
        add_to_grad(params, before)
        add_to_grad(params, all_reduce_mean(here, params))

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor | None, None]:
        part: Gradient = [None] * len(gathered.params)
        if gradients:  # before the meeting, because this needs memory for a whole gradient and may fail
            part = ops.combine(gradients, weights[tasks], backend=gathered.backend)
        self._meet(gathered.params)
        part = all_reduce_mean(part, gathered.params)
        gathered.add(tasks, gradients)
        gathered.combined = part if gathered.combined is None else add(gathered.combined, part)
        add_to_grad(gathered.params, part)  # part may become p.grad itself, so this comes after the sum
        return (gathered.dots(gathered.combined) if gathered.rows else None), None

    def statistics(
        self, losses: dict[int, Tensor], dots: Tensor | None, sqnorms: Tensor | None, largest: Tensor, count: int
    ) -> Statistics:
        self._meet([])
        here = list(losses)
        # Three rows: losses, dots, and 1 for each task of this process. The last column of the first row is `largest`.
        local = torch.zeros(3, count + 1, dtype=torch.float64, device=largest.device)
        if here:
            local[0, here] = torch.stack(list(losses.values())).to(local.device)
            if dots is not None:
                local[1, here] = dots.to(local.device)
            local[2, here] = 1.0
        local[0, -1] = largest
        host = all_reduce_sum(local).cpu()
        tasks = host[2].nonzero()[:, 0].tolist()
        if not tasks:
            raise ValueError("backward() needs the loss of at least one task in at least one process")
        values, v = host[:2, tasks] / world_size()
        unknown = torch.full_like(v, math.nan)
        return Statistics(tasks, values, v, unknown, sqnorms_known=False, finite=bool(torch.isfinite(host).all()))


def reducer(current: Reducer | None = None) -> Reducer:
    """The reducer for the current number of processes. If ``current`` fits, it is returned."""
    kind = Replicated if world_size() > 1 else Local
    return current if isinstance(current, kind) else kind()


def world_size() -> int:
    """The number of processes: 1 if torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(numbers: Tensor) -> Tensor:
    """The sum over the processes, in a new tensor."""
    result = numbers.clone()
    dist.all_reduce(result)
    return result


def all_reduce_mean(gradient: Gradient, params: Sequence[Tensor]) -> Gradient:
    """The mean over the processes, where None counts as zero. If a parameter has None in all processes, it stays None.

    A small all-reduce finds out which parameters have a gradient in any process. Then there is one all-reduce per
    dtype, of flat copies.
    """
    device = params[0].device
    has_gradient = torch.tensor([g is not None for g in gradient], dtype=torch.int32, device=device)
    holders = all_reduce_sum(has_gradient).tolist()
    result: Gradient = [None] * len(params)
    for dtype in dict.fromkeys(p.dtype for p in params):
        chosen = [i for i, p in enumerate(params) if holders[i] and p.dtype == dtype]
        if not chosen:
            continue
        flat = torch.cat([_dense(gradient[i], params[i]).reshape(-1) for i in chosen])
        dist.all_reduce(flat)
        flat /= world_size()
        for i, part in zip(chosen, flat.split([params[i].numel() for i in chosen]), strict=True):
            result[i] = part.view(params[i].shape)
    return result


def _dense(gradient: Tensor | None, param: Tensor) -> Tensor:
    found = dense(gradient)
    return torch.zeros_like(param) if found is None else found


def _in_distributed_data_parallel(params: Sequence[Tensor]) -> bool:
    """Whether any living DistributedDataParallel has one of these parameters.

    The optimizer gets parameters, not the model, and a parameter does not tell which modules hold it. So this looks
    through all objects that the garbage collector knows. ``isinstance`` would ask each of them for ``__class__``, which
    runs code of unrelated objects such as proxies. ``type()`` does not.
    """
    ours = {id(p) for p in params}
    wrappers = [each for each in gc.get_objects() if issubclass(type(each), nn.parallel.DistributedDataParallel)]
    return any(id(p) in ours for wrapper in wrappers for p in wrapper.parameters())
