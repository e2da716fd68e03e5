"""The losses of one backward() call, as the engine one_pass takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Attributes:
    roots: tensors with a graph.
    seeds: maps N weights w_n to the gradients at which the backward pass of Σ w_n L_n starts, one per root.
    tasks: the indices of the tasks that have losses. total: the number N of all tasks.
    lists: the tasks of rows: each (R,) int64, -1 for none.
    """

    roots: list[Tensor]
    seeds: Callable[[Sequence[float]], list[Tensor]]
    tasks: list[int]
    total: int
    lists: list[Tensor]
