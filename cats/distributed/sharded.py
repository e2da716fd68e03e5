"""The reducer for parameters that are sharded by fully_shard (FSDP2), also in several replicas (hybrid)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from cats.agreement import compare_parameters
from cats.engines.per_task import TaskGradients
from cats.gradients import Gradient, local
from cats.weighting import Weighting

from . import local as one_process
from .communication import Communication
from .interface import BeforeLastPass
from .processes import Processes


class Sharded(Processes):
    """Each process has a shard of each parameter and of its gradient, as a DTensor.

    fully_shard averages the gradients over the processes in each backward pass, and leaves each process its shard of
    the mean. So the combination of per-task gradients is local, and inner products and squared norms are sums over the
    shards: K numbers. If there are several replicas of the shards, all have the same numbers.

    Forward and backward passes wait for the other processes. So all must pass the same tasks in the same order, and a
    process that fails in a pass is noticed only by the timeout of torch.distributed.
    """

    names_nonfinite_task = True
    whole_backward = True

    def __init__(self, communication: Communication) -> None:
        super().__init__(communication)
        self._shard = self._shards = self._replicas = 1
        self._modules: list[Any] = []  # the FSDP modules that hold the trained parameters, once they are checked
        self._reduced = False  # whether the last backward() call averaged all gradients

    def check(
        self, tasks: Sequence[int], params: Sequence[Tensor], weighting: Weighting, *, per_task: bool, reason: str
    ) -> None:
        if not self._compared:
            self._check_mesh(params)
        self._meet(params, **{"tasks with a loss": str([weighting.names[n] for n in tasks])})
        if not tasks:
            raise ValueError(
                "with fully_shard each process needs the losses of the same tasks in each backward(): a process "
                "without examples passes 0 * model(input).sum() for some input"
            )

    def _check_mesh(self, params: Sequence[Any]) -> None:
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor

        if self.communication.dtype is not None:
            raise RuntimeError(
                "communication_dtype has no effect on sharded parameters: use "
                "MixedPrecisionPolicy(reduce_dtype=...) of fully_shard"
            )
        # As for DistributedDataParallel, a parameter does not tell which module holds it. Between a forward and a
        # backward pass, a module may hold the whole parameters. The backward pass gathers them again.
        modules = [each for each in gc.get_objects() if issubclass(type(each), FSDPModule)]
        for module in modules:
            module.reshard()
        known = {id(p) for module in modules for p in module.parameters()}
        trained = {id(p) for p in params}
        self._modules = [each for each in modules if any(id(p) in trained for p in each.parameters())]
        mesh = next(p.device_mesh for p in params if isinstance(p, DTensor))
        for p in params:
            if not isinstance(p, DTensor) or id(p) not in known or p.device_mesh != mesh:
                raise RuntimeError(
                    f"a trained parameter of shape {tuple(p.shape)} is not sharded by fully_shard, or not on the mesh "
                    "of the others: call fully_shard on the whole model, with one mesh"
                )
        if sorted(mesh.mesh.flatten().tolist()) != sorted(self.communication.ranks):
            raise RuntimeError(
                "process_group does not have the processes of the device mesh of fully_shard: pass mesh.get_group(), "
                "or for a mesh of two dimensions a group of all its processes"
            )
        self._shards, self._shard = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
        self._replicas = mesh.size() // self._shards

    def _compare_parameters(self, params: Sequence[Tensor]) -> None:
        if self._replicas > 1:
            shards = [local(p) for p in params]
            compare_parameters(shards, self.communication.group, part=self._shard, parts=self._shards)

    @contextmanager
    def averaged(self, params: Sequence[Tensor]) -> Iterator[BeforeLastPass]:
        yield lambda: None
        self._reduced = self._syncs()

    def _syncs(self) -> bool:
        """Whether fully_shard averages the gradients of all trained parameters at the end of a backward pass.

        set_requires_gradient_sync() may have turned that off, also in a part of the model.
        """
        groups = [group for module in self._modules for group in _groups(module)]
        hybrid = self._replicas > 1
        return all(group.reduce_grads and (group.all_reduce_grads or not hybrid) for group in groups)

    def exchanged(
        self, gathered: TaskGradients, tasks: list[int], values: list[Tensor], gradients: list[Gradient], count: int
    ) -> tuple[list[int], list[Tensor], list[Gradient]]:
        if not self._syncs() or any(all(g is None for g in gradient) for gradient in gradients):
            raise RuntimeError(
                "fully_shard did not average the whole gradient of a task: steps with per-task gradients need "
                "set_requires_gradient_sync(True) for the whole model in every backward()"
            )
        self._reduced = True
        return tasks, values, gradients

    def _compared_in_step(self) -> dict[str, str]:
        if not self._reduced:
            raise RuntimeError(
                "fully_shard did not average all gradients in the last backward() of this step: call "
                "set_requires_gradient_sync(True) of the whole model before it"
            )
        return {}

    def combine(
        self, gathered: TaskGradients, tasks: list[int], gradients: list[Gradient], weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return one_process.combine(gathered, tasks, gradients, weights)

    @property
    def _has_means(self) -> bool:
        return True

    @property
    def _copies(self) -> int:
        return self._replicas


def _groups(module: Any) -> list[Any]:
    """What holds the parameters of an FSDP module. It knows whether gradients are averaged, but has no public name."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]  # before torch 2.13
