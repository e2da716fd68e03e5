"""Which dimension of a layer's output holds the rows, and to which task each row belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor


class _Rows:
    """The dimensions ``dim``, ..., ``dim + dims - 1`` of a tensor hold its rows."""

    dim: int
    dims: int

    @property
    def first(self) -> bool:
        """Whether the rows are those of the first dimension."""
        return self.dim == 0 and self.dims == 1

    def rows(self, shape: Sequence[int]) -> int:
        return prod(shape[self.dim : self.dim + self.dims])

    def as_rows(self, x: Tensor) -> Tensor:
        """(rows, the rest): the tensor as a matrix."""
        if self.dim:
            places = range(self.dim, self.dim + self.dims)
            x = x.movedim(list(places), list(range(self.dims)))
        return x.reshape(prod(x.shape[: self.dims]), prod(x.shape[self.dims :]))


@dataclass(frozen=True)
class Placement(_Rows):
    """One or more neighbouring dimensions of a tensor hold the rows whose tasks a list of length L tells.

    Attributes:
        ids: the number of the list.
        dim: the first of the dimensions. dims: how many there are. The product of their sizes is L or a multiple of L.
        tiled: where it is a multiple: whether the list repeats as a whole, as in (T, B) flattened, and not entry by
            entry, as in (B, T) flattened.
    """

    ids: int
    dim: int
    dims: int = 1
    tiled: bool = False

    def tasks(self, shape: Sequence[int], lists: Sequence[Tensor]) -> Tensor:
        """The task of each row, int64."""
        ids = lists[self.ids]
        repeats = self.rows(shape) // len(ids)
        if repeats == 1:
            return ids
        return ids.repeat(repeats) if self.tiled else ids.repeat_interleave(repeats)


@dataclass(frozen=True, eq=False)
class Measured(_Rows):
    """The tasks of the rows, as masked backward passes have shown them for one call.

    Attributes:
        shown: (rows,) int64, -1 for rows without a gradient.
    """

    dim: int
    dims: int
    shown: Tensor

    def tasks(self, shape: Sequence[int], lists: Sequence[Tensor]) -> Tensor:
        """As for :class:`Placement`."""
        return self.shown


@lru_cache(maxsize=4096)
def candidates(shape: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[Placement, ...]:
    """All placements that fit, the likely ones first: an exact size, an early dimension, the losses' own list."""
    found = []
    for dim, size in enumerate(shape):
        for number, length in enumerate(lengths):
            if length and size and size % length == 0:
                exact = size == length
                found.append((not exact, dim, 1, number, False))
                # Of the exact size, both are the same rows. Which one it is may show only when the size is a multiple.
                if length > 1:
                    found.append((not exact, dim, 1, number, True))
            for dims in range(2, len(shape) - dim + 1):
                if length and prod(shape[dim : dim + dims]) == length:
                    found.append((False, dim, dims, number, False))
    return tuple(Placement(number, dim, dims, tiled) for _, dim, dims, number, tiled in sorted(found))


class Sample:
    """A random part of some rows: the same share of each task's rows, at least one.

    Args:
        tasks: (R,) the task of each row. count: the number of tasks. share: in (0, 1).

    Attributes:
        index: (S,) the chosen rows, ascending.
        tasks: (S,) their tasks.
        factor: (count,) float64, by which a sum over the chosen rows of a task is an unbiased estimate of all its rows.
    """

    def __init__(self, tasks: Tensor, count: int, share: float, generator: torch.Generator) -> None:
        keys = torch.rand(len(tasks), generator=generator, dtype=torch.float64).to(tasks.device)
        order = torch.argsort(tasks + keys)  # task by task, in random order within each
        sizes = torch.bincount(tasks + 1, minlength=count + 1)  # the first is that of rows without a task
        first = sizes.cumsum(0) - sizes
        place = torch.arange(len(tasks), device=tasks.device) - first[tasks[order] + 1]
        wanted = (sizes * share).ceil().long()
        self.index = order[(place < wanted[tasks[order] + 1]) & (tasks[order] >= 0)].sort().values
        self.tasks = tasks[self.index]
        self.factor = (sizes.double() / wanted.clamp(min=1))[1:]
