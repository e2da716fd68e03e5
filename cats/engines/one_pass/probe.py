"""Masked backward passes that show which rows of a layer belong to which task, instead of assuming it.

If only the losses of some tasks are differentiated, the rows of all other tasks receive the gradient 0, exactly: no
layer lets examples of different tasks meet. If a row that should belong to another task receives a gradient, either
the rows were taken for those of the wrong tasks, or examples of several tasks do meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, count
from math import comb

import torch
from torch import Tensor

from .batch import Batch
from .graph import Use
from .placement import Placement, candidates


def masks(tasks: Sequence[int]) -> list[set[int]]:
    """Sets of tasks such that for any two tasks i ≠ j one of the sets has i, but not j. As few as possible (Sperner).

    Each task is in half of the sets, and no two tasks are in the same half.
    """
    size = next(n for n in count() if comb(n, n // 2) >= len(tasks))
    halves = combinations(range(size), size // 2)
    members: list[set[int]] = [set() for _ in range(size)]
    for task, half in zip(tasks, halves, strict=False):
        for i in half:
            members[i].add(task)
    return members


class Evidence:
    """What the masked backward passes have shown about one use of a parameter."""

    def __init__(self, shape: tuple[int, ...], lists: Sequence[Tensor]) -> None:
        self.shape, self.lists = shape, lists
        self.possible = list(candidates(shape, tuple(map(len, lists))))
        self.seen = False  # whether any row received a gradient

    def add(self, delta: Tensor, allowed: Tensor) -> None:
        """delta: the gradient of the output. allowed: (N + 1,) bool: whether rows of task n, or none, may have one."""
        nonzero = delta != 0  # nan too
        for placement in list(self.possible):
            hit = placement.as_rows(nonzero).any(1)
            self.seen |= bool(hit.any())
            tasks = placement.tasks(self.shape, self.lists).to(delta.device)
            if bool((hit & ~allowed.to(delta.device)[tasks]).any()):
                self.possible.remove(placement)


def masked_gradients_show(
    uses: Sequence[Use], batch: Batch, params: Sequence[Tensor]
) -> list[tuple[tuple[Placement, ...], bool]]:
    """For each use the placements that the masked backward passes leave, and whether they showed any gradient there."""
    evidence = [Evidence(use.shape, batch.lists) for use in uses]
    for members in masks(batch.tasks):
        allowed = torch.tensor([*(n in members for n in range(batch.total)), False])
        hooks = [
            use.node.register_prehook(_observer(found, allowed)) for use, found in zip(uses, evidence, strict=True)
        ]
        try:
            seeds = batch.seeds([float(n in members) for n in range(batch.total)])
            torch.autograd.grad(batch.roots, params, seeds, retain_graph=True, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
    return [(tuple(found.possible), found.seen) for found in evidence]


def _observer(found: Evidence, allowed: Tensor) -> Callable[[tuple[Tensor | None, ...]], None]:
    def observe(gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            with torch.no_grad():
                found.add(gradients[0], allowed)

    return observe
