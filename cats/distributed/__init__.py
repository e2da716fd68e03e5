"""Reducers: how gradients and statistics are combined over the processes. All have the methods of :class:`Reducer`.

:class:`Local` is for one process. With several, :class:`Replicated` averages the gradients of replicas. In
:class:`Wrapped` and :class:`Sharded`, DistributedDataParallel or fully_shard (FSDP2) around the model does that.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch import distributed as dist

from cats.gradients import is_sharded

from .communication import Communication
from .interface import BeforeLastPass, Call, Reducer, Statistics
from .local import Local
from .replicated import Replicated
from .sharded import Sharded
from .wrapped import Wrapped, wrappers_of

__all__ = [
    "BeforeLastPass",
    "Call",
    "Communication",
    "Local",
    "Reducer",
    "Replicated",
    "Sharded",
    "Statistics",
    "Wrapped",
    "reducer",
]


def reducer(params: Sequence[Tensor], communication: Communication, current: Reducer | None = None) -> Reducer:
    """The reducer for these parameters and the current number of processes. If ``current`` fits, it is returned."""
    if any(map(is_sharded, params)):
        return current if isinstance(current, Sharded) else Sharded(communication)
    if not (dist.is_available() and dist.is_initialized()) or communication.size == 1:
        return current if isinstance(current, Local) else Local()
    if isinstance(current, Replicated | Wrapped):
        return current
    wrappers = wrappers_of(params)
    return Wrapped(communication, wrappers) if wrappers else Replicated(communication)
