"""The reducer for a model that is wrapped in DistributedDataParallel."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch import distributed as dist

from cats.agreement import checksum
from cats.engines.per_task import TaskGradients
from cats.gradients import Gradient, dense
from cats.weighting import Weighting

from .communication import Communication
from .interface import BeforeLastPass
from .processes import Processes


class Wrapped(Processes):
    """Replicas in DistributedDataParallel, which averages the gradients in a plain backward pass.

    It does so once per parameter and forward pass, so a call is one backward pass over all losses. Whether p.grad is
    averaged is not visible in it: after a second backward pass, or under no_sync(), it silently is not. So the
    processes compare a checksum of p.grad at each step.
    """

    whole_backward = True

    def __init__(self, communication: Communication, wrappers: list[nn.parallel.DistributedDataParallel]) -> None:
        super().__init__(communication)
        self._wrappers = [*map(weakref.ref, wrappers)]  # until they are checked
        self._checksum: Tensor | None = None  # of p.grad after the last backward() call, 0-d

    def check(
        self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting, *, per_task: bool, reason: str
    ) -> None:
        if not tasks:
            raise ValueError(
                "with DistributedDataParallel each process needs a loss in each backward(): a process without examples "
                "passes 0 * model(input).sum() for some input"
            )
        if per_task:
            raise RuntimeError(
                "the model is wrapped in DistributedDataParallel, which does not see per-task gradients, and engine "
                f"per_task was chosen ({reason}): pass the loss of each row and tasks= to backward(), with a model "
                "that engine one_pass supports. Or delete the DistributedDataParallel object, and make the optimizer "
                "after that: it then averages the gradients itself"
            )
        if self.communication.dtype is not None:
            raise RuntimeError(
                "communication_dtype has no effect in DistributedDataParallel: register "
                "torch.distributed.algorithms.ddp_comm_hooks.default_hooks.bf16_compress_hook with it"
            )
        if self._wrappers:
            self._check_wrappers(params)

    def _check_wrappers(self, params: Sequence[Tensor]) -> None:
        wrappers = [wrapper for each in self._wrappers if (wrapper := each()) is not None]
        for wrapper in wrappers:
            if dist.get_process_group_ranks(wrapper.process_group) != self.communication.ranks:
                raise RuntimeError("process_group is not that of DistributedDataParallel: pass the same group")
        wrapped = {id(p) for wrapper in wrappers for p in wrapper.parameters()}
        outside = [i for i, p in enumerate(params) if id(p) not in wrapped]
        if wrappers and outside:
            raise RuntimeError(
                f"{len(outside)} of {len(params)} trained parameters are not in DistributedDataParallel, and the "
                f"others are (the first one has shape {tuple(params[outside[0]].shape)}): wrap all of them, or none"
            )
        self._wrappers.clear()

    @contextmanager
    def averaged(self, params: Sequence[Tensor]) -> Iterator[BeforeLastPass]:
        def before_last_pass() -> None:
            self._meet(params)

        yield before_last_pass
        self._checksum = checksum([g for g in (dense(p.grad) for p in params) if g is not None], params[0].device)

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        raise AssertionError("check() refuses per-task gradients")

    def _compared_in_step(self) -> dict[str, str]:
        assert self._checksum is not None, "averaged() has set it"
        name = (
            "the checksum of p.grad, which DistributedDataParallel averages (only in the first backward pass after a "
            "forward pass through it, and not under no_sync(). To train the module itself, delete the "
            "DistributedDataParallel object, and make the optimizer after that)"
        )
        return {name: str(self._checksum.item())}


def wrappers_of(params: Sequence[Tensor]) -> list[nn.parallel.DistributedDataParallel]:
    """All living DistributedDataParallel objects that have one of these parameters.

    The optimizer gets parameters, not the model, and a parameter does not tell which modules hold it. So this looks
    through all objects that the garbage collector knows. ``isinstance`` would ask each of them for ``__class__``, which
    runs code of unrelated objects such as proxies. ``type()`` does not.
    """
    ours = {id(p) for p in params}
    wrappers = [each for each in gc.get_objects() if issubclass(type(each), nn.parallel.DistributedDataParallel)]
    return [each for each in wrappers if any(id(p) in ours for p in each.parameters())]
