"""Which dimension of a layer's output holds the rows, and to which task each row belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Dimension ``dim`` of a tensor holds the rows whose tasks a list of length L tells.

    Attributes:
        ids: the number of the list.
        dim: its size is L or a multiple of L.
        tiled: where it is a multiple: whether the list repeats as a whole, as in (T, B) flattened, and not entry by
            entry, as in (B, T) flattened.
    """

    ids: int
    dim: int
    tiled: bool = False

    def fits(self, shape: Sequence[int], lengths: Sequence[int]) -> bool:
        return self.ids < len(lengths) and self.dim < len(shape) and shape[self.dim] % max(lengths[self.ids], 1) == 0

    def tasks(self, shape: Sequence[int], lists: Sequence[Tensor]) -> Tensor:
        """The task of each position along the dimension, int64."""
        ids = lists[self.ids]
        repeats = shape[self.dim] // len(ids)
        if repeats == 1:
            return ids
        return ids.repeat(repeats) if self.tiled else ids.repeat_interleave(repeats)


@lru_cache(maxsize=4096)
def candidates(shape: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[Placement, ...]:
    """All placements that fit, the likely ones first: an exact size, an early dimension, the losses' own list."""
    found = []
    for dim, size in enumerate(shape):
        for number, length in enumerate(lengths):
            if length and size and size % length == 0:
                exact = size == length
                found.append((not exact, dim, number, False))
                if not exact and length > 1:
                    found.append((True, dim, number, True))
    return tuple(Placement(number, dim, tiled) for _, dim, number, tiled in sorted(found))


def as_rows(x: Tensor, dim: int) -> Tensor:
    """(rows, the rest): the tensor as a matrix whose rows are the positions along ``dim``."""
    return (x if dim == 0 else x.movedim(dim, 0)).reshape(x.shape[dim], -1)


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
