"""Masked backward passes that show which rows of a layer belong to which task, instead of assuming it.

If only the losses of some tasks are differentiated, the rows of all other tasks receive the gradient 0, exactly, unless
a layer lets examples of different tasks meet. The sets of tasks are such that the sets in which a row receives a
gradient tell its task. A row of several tasks fits no task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, count
from math import comb

import torch
from torch import Tensor

from cats.engines.autograd import freed_graphs_explained
from cats.engines.pending import UnsupportedError
from cats.gradients import take_grads

from .batch import Batch
from .graph import Use
from .placement import Measured, Placement, candidates


def masks(tasks: Sequence[int]) -> list[set[int]]:
    """Sets of tasks such that for any two tasks i ≠ j one of the sets has i, but not j. As few as possible (Sperner).

    Each task is in half of the sets, and no two tasks are in the same half. A single task is in one set.
    """
    if len(tasks) == 1:
        return [set(tasks)]
    size = next(n for n in count() if comb(n, n // 2) >= len(tasks))
    halves = combinations(range(size), size // 2)
    members: list[set[int]] = [set() for _ in range(size)]
    for task, half in zip(tasks, halves, strict=False):
        for i in half:
            members[i].add(task)
    return members


@dataclass(frozen=True)
class Shown:
    """What the masked backward passes have shown about one use of a parameter.

    Attributes:
        placements: those that tell the right task of every row that receives a gradient.
        measured: the tasks of these rows. None if some belong to several tasks.
        seen: whether any row received a gradient. finite: whether all gradients were finite.
    """

    placements: tuple[Placement, ...]
    measured: Measured | None
    seen: bool
    finite: bool = True


class _Evidence:
    """For each way to see the rows of a use's output, the sets in which each row received a gradient: bit i for set i.

    Args:
        lengths: those of the lists of tasks.
    """

    def __init__(self, use: Use, lengths: tuple[int, ...]) -> None:
        self.shape = use.shape
        self.candidates = candidates(use.shape, lengths)
        none = torch.empty(0, dtype=torch.int64)
        views = [Measured(dim, 1, none) for dim in range(len(use.shape))]
        views += [Measured(0, 2, none)] if len(use.shape) > 2 else []
        self.views: dict[tuple[int, int], Placement | Measured] = {(v.dim, v.dims): v for v in views}
        self.views |= {(p.dim, p.dims): p for p in self.candidates}
        self.sets: dict[tuple[int, int], Tensor] = {}
        self.finite = True

    def add(self, delta: Tensor, i: int) -> None:
        """delta: the gradient of the output with the i-th set of tasks."""
        nonzero = delta != 0  # nan too
        # isfinite() of each element takes as much memory again. A sum in float16 may be infinite without any of them.
        self.finite &= bool(delta.sum(dtype=torch.promote_types(delta.dtype, torch.float32)).isfinite())
        for key, view in self.views.items():
            hit = view.as_rows(nonzero).any(1).long() << i
            self.sets[key] = self.sets[key] | hit if key in self.sets else hit

    def shown(self, batch: Batch, members: Sequence[set[int]]) -> Shown:
        of_task = [sum(1 << i for i, tasks in enumerate(members) if n in tasks) for n in range(batch.total)]
        if not self.sets:  # no row ever receives a gradient
            none = Measured(0, 1, torch.full((self.shape[0],), -1))
            return Shown(self.candidates, none, seen=False)
        possible = []
        for placement in self.candidates:
            sets = self.sets[placement.dim, placement.dims]
            allowed = torch.tensor([*of_task, 0], device=sets.device)  # the last is for rows of no task, -1
            if not bool((sets & ~allowed[placement.tasks(self.shape, batch.lists).to(sets.device)]).any()):
                possible.append(placement)
        measured = None if possible else self._measured([of_task[n] for n in batch.tasks], batch.tasks)
        return Shown(tuple(possible), measured, seen=bool(self.sets[0, 1].any()), finite=self.finite)

    def _measured(self, of_task: Sequence[int], tasks: Sequence[int]) -> Measured | None:
        for (dim, dims), sets in self.sets.items():
            known = torch.tensor([0, *of_task], device=sets.device)
            same = sets[:, None] == known
            if bool(same.any(1).all()):
                rows = torch.tensor([-1, *tasks], device=sets.device)[same.long().argmax(1)]
                return Measured(dim, dims, rows)
        return None


def masked_gradients_show(
    uses: Sequence[Use], batch: Batch, params: Sequence[Tensor], names: Sequence[str], *, only: int | None = None
) -> list[Shown]:
    """What masked backward passes show about each use.

    Args:
        only: if given, there is a single pass, with one of the sets of tasks: this one, counted round and round.

    Raises:
        UnsupportedError: a function that is written in Python has written to ``p.grad`` of one of ``params`` itself.
    """
    before = take_grads(params)
    try:
        members = masks(batch.tasks)
        shown = _masked_passes(uses, batch, params, members if only is None else [members[only % len(members)]])
        hidden = [name for p, name in zip(params, names, strict=True) if p.grad is not None]
    finally:
        for p, grad in zip(params, before, strict=True):
            p.grad = grad
    if hidden:
        raise UnsupportedError(
            f"engine one_pass: {', '.join(hidden)} got a gradient from a function that uses it out of sight of "
            "autograd: use engine='per_task'"
        )
    return shown


def _masked_passes(
    uses: Sequence[Use], batch: Batch, params: Sequence[Tensor], members: Sequence[set[int]]
) -> list[Shown]:
    lengths = tuple(map(len, batch.lists))
    evidence = [_Evidence(use, lengths) for use in uses]
    for i, tasks in enumerate(members):
        hooks = [use.node.register_prehook(_observer(found, i)) for use, found in zip(uses, evidence, strict=True)]
        try:
            seeds = batch.seeds([float(n in tasks) for n in range(batch.total)])
            with freed_graphs_explained():
                torch.autograd.grad(batch.roots, params, seeds, retain_graph=True, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
    return [found.shown(batch, members) for found in evidence]


def _observer(found: _Evidence, i: int) -> Callable[[tuple[Tensor | None, ...]], None]:
    def observe(gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            with torch.no_grad():
                found.add(gradients[0], i)

    return observe
