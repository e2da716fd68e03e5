"""Which uses of parameters the engine one_pass computes by rows, and which parameters it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cats.engines.pending import UnsupportedError

from .batch import Batch
from .derivatives import supported
from .graph import Graph, Use, find_uses
from .placement import Measured, Placement, candidates
from .probe import Shown, masked_gradients_show

Key: TypeAlias = tuple[Any, ...]  # what a use has in common with the same use in another step


@dataclass(frozen=True)
class Plan:
    """Attributes:
    graph: the graph of the losses.
    uses: {use: where its rows are}.
    others: the parameters whose share of <g_n, ḡ> needs their gradient of every task.
    check: whether to check the result, too.
    """

    graph: Graph
    uses: dict[Use, Placement | Measured]
    others: list[int]
    check: bool


class Planner:
    """Makes the plan of every outer step, and remembers how the rows of each layer are placed."""

    def __init__(self) -> None:
        self.plans = 0
        self._checked_again = 0  # how many single masked passes there were
        self._lists = 0  # the number of lists of tasks in the last call
        self._params: list[int] = []  # the ids of the parameters in the last call
        self._forget()

    def _forget(self) -> None:
        self.placements: dict[Key, tuple[Placement, ...]] = {}
        self._without_rows: set[Key] = set()  # uses of parameters alone, whose rows belong to all tasks
        self._moving: set[Key] = set()  # uses whose rows are in another order in each call: always measured
        # The edges of the graphs that were checked, for calls with one task and with several.
        self._edges: dict[bool, set[tuple[str, str]]] = {False: set(), True: set()}

    def plan(self, batch: Batch, params: Sequence[Tensor], shared: int, names: Sequence[str]) -> Plan:
        """Finds all uses of the shared parameters, and checks that the rows of each belong to one task.

        The check takes a few masked backward passes. It is made when a layer is seen for the first time, when nodes
        are connected in the graph that were not connected before, or if the shape of a layer leaves it open which rows
        belong to which task. At calls 2, 4, 8, ..., 64, 100, 200, ... a single masked pass checks what is known, with
        the next of the n sets of tasks that the check has (:func:`masks`). So if the values of a constant let two
        tasks meet, while the graph stays the same, one of the next n such passes finds it, as long as the tasks that
        take part are the same. If all tasks meet, the very next pass finds it.

        Args:
            params: the shared parameters first, ``shared`` in number. names: for error messages.

        Raises:
            UnsupportedError: examples of several tasks meet, or the graph does not show all uses.
        """
        self.plans += 1
        if self._params != [id(p) for p in params[:shared]]:  # what is remembered goes by the number of a parameter
            self._forget()
            self._params = [id(p) for p in params[:shared]]
        graph = find_uses(batch.roots, params[:shared])
        _check(graph)
        keys = _keys(graph.uses)
        others = {
            i
            for use in graph.uses
            if keys[use] in self._without_rows or not _has_rows(use.shape) or not supported(use.node, use.inputs)
            for i in use.params
        }
        # The hook of a tensor changes its gradient, which then is no sum over the rows of layers.
        others |= {i for use in graph.uses for i in use.params if params[i]._backward_hooks}
        uses = [use for use in graph.uses if not use.params <= others]
        again = len(batch.tasks) > 1 and (self.plans.bit_count() == 1 if self.plans < 100 else self.plans % 100 == 0)
        check = self._is_unknown(uses, keys, graph, batch)
        if again and not check:
            some = masked_gradients_show(uses, batch, params, names, only=self._checked_again)
            self._checked_again += 1
            check = not all(
                self._known(use, keys[use], batch)[0] in each.placements for use, each in zip(uses, some, strict=True)
            )
        shown = dict(zip(uses, masked_gradients_show(uses, batch, params, names), strict=True)) if check else {}
        found = {use: self._place(use, keys[use], batch, shown.get(use)) for use in uses}
        for use in uses:
            if found[use] is None and use.only_parameters and not graph.batch_norm and shown[use].finite:
                self._without_rows.add(keys[use])
                others |= use.params
        for use in uses:
            if found[use] is None and not use.params <= others:
                finite = all(bool(root.isfinite().all()) for root in batch.roots) and shown[use].finite
                if finite:
                    _refuse(graph, [names[i] for i in sorted(use.params - others)])
                others |= use.params  # nan spreads to the rows of all tasks. The step will be skipped
        self._edges[len(batch.tasks) > 1] |= graph.edges
        self._lists = len(batch.lists)
        placed = {kept: found[use] for use in uses if (kept := _without(use, others))}
        uses_by_rows = {use: place for use, place in placed.items() if place is not None}
        return Plan(graph, uses_by_rows, sorted(others), check or again)

    def _is_unknown(self, uses: Sequence[Use], keys: dict[Use, Key], graph: Graph, batch: Batch) -> bool:
        """Whether it is not known, from earlier calls, which rows belong to which task."""
        several = len(batch.tasks) > 1
        if not graph.edges <= self._edges[several]:
            return True
        if several and (len(batch.lists) != self._lists or any(keys[use] in self._moving for use in uses)):
            return True
        return several and not all(_agree(self._known(use, keys[use], batch), use, batch) for use in uses)

    def _known(self, use: Use, key: Key, batch: Batch) -> tuple[Placement, ...]:
        possible = candidates(use.shape, tuple(map(len, batch.lists)))
        return tuple(p for p in self.placements.get(key, ()) if p in possible)

    def _place(self, use: Use, key: Key, batch: Batch, shown: Shown | None) -> Placement | Measured | None:
        """Where the rows of a use are. None: some belong to several tasks."""
        if len(batch.tasks) == 1:  # every row is this task's
            return Measured(0, 1, torch.full((use.shape[0],), batch.tasks[0]))
        if shown is None:
            return self._known(use, key, batch)[0]
        if shown.seen and shown.finite:  # 0 · nan is nan: such rows seem to belong to all tasks
            self._remember(use, key, batch, shown)
        return shown.placements[0] if shown.placements else shown.measured

    def _remember(self, use: Use, key: Key, batch: Batch, shown: Shown) -> None:
        """Keeps the placements that no check has refuted. One that fitted by chance must not be trusted again."""
        possible = candidates(use.shape, tuple(map(len, batch.lists)))
        before = self.placements.get(key, possible)
        kept = tuple(p for p in before if p in shown.placements or p not in possible)
        new = tuple(p for p in shown.placements if p not in kept) if not any(p in possible for p in before) else ()
        self.placements[key] = (*kept, *new)
        if not any(p in possible for p in self.placements[key]):
            self._moving.add(key)


def _has_rows(shape: Sequence[int]) -> bool:
    """Whether a tensor has dimensions, and all of them have a size: not those of a nested tensor."""
    return len(shape) > 0 and all(isinstance(size, int) for size in shape)


def _refuse(graph: Graph, names: Sequence[str]) -> None:
    why = "batch normalisation in training" if graph.batch_norm else "batch statistics or a shared loss"
    raise UnsupportedError(
        f"engine one_pass: examples of different tasks meet in the layer of {', '.join(names)}, for example by {why}: "
        "use engine='per_task'"
    )


def _check(graph: Graph) -> None:
    if graph.compiled:
        raise UnsupportedError(
            "engine one_pass: a part of the graph was compiled by torch.compile, which hides its layers: compute the "
            "losses of these steps under torch.compiler.set_stance('force_eager'), or pass them as a callable"
        )
    if graph.reentrant:
        raise UnsupportedError(
            "engine one_pass: a reentrant checkpoint hides its layers: use torch.utils.checkpoint with "
            "use_reentrant=False"
        )


def _without(use: Use, others: set[int]) -> Use | None:
    """The use without the inputs that are, or are views of, these parameters."""
    inputs = {i: source for i, source in use.inputs.items() if source.param not in others}
    return use if len(inputs) == len(use.inputs) else Use(use.node, inputs) if inputs else None


def _keys(uses: Sequence[Use]) -> dict[Use, Key]:
    seen: Counter[Key] = Counter()
    keys = {}
    for use in uses:
        kind = (use.name, tuple(sorted((i, source.param) for i, source in use.inputs.items())))
        keys[use] = (*kind, seen[kind])
        seen[kind] += 1
    return keys


def _agree(placements: Sequence[Placement], use: Use, batch: Batch) -> bool:
    """Whether there are any, and all of them give every element of the use's output the same task."""
    lengths = tuple(map(len, batch.lists))
    # Of the exact size, a list is not repeated, so it does not matter how.
    different = {replace(p, tiled=p.tiled and p.rows(use.shape) > lengths[p.ids]) for p in placements}
    if len(different) < 2:
        return len(different) == 1
    first, *rest = (_by_element(p, use.shape, batch) for p in different)
    return all(bool((first == each).all()) for each in rest)


def _by_element(placement: Placement, shape: tuple[int, ...], batch: Batch) -> Tensor:
    """The task of each element of a tensor, with a size of 1 for dimensions that do not matter."""
    rows = range(placement.dim, placement.dim + placement.dims)
    tasks = placement.tasks(shape, batch.lists)
    return tasks.reshape([size if dim in rows else 1 for dim, size in enumerate(shape)])
