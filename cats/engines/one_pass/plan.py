"""Which uses of parameters the engine one_pass computes by rows, and which parameters it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from cats.engines.pending import UnsupportedError

from .batch import Batch
from .derivatives import supported
from .graph import Graph, Use, find_uses
from .placement import Placement, candidates
from .probe import masked_gradients_show

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
    uses: dict[Use, Placement]
    others: list[int]
    check: bool


class Planner:
    """Makes the plan of every outer step, and remembers how the rows of each layer are placed."""

    def __init__(self) -> None:
        self.placements: dict[Key, tuple[Placement, ...]] = {}
        self.plans = 0

    def plan(self, batch: Batch, params: Sequence[Tensor], names: Sequence[str]) -> Plan:
        """Finds all uses of the parameters, and checks that the rows of each belong to one task.

        The check takes a few masked backward passes. It is made when a layer is seen for the first time, or if its
        shape leaves it open which rows belong to which task; and again at calls 2, 4, 8, ..., 64, 100, 200, ...

        Args:
            params: the shared parameters. names: for error messages.

        Raises:
            UnsupportedError: examples of several tasks meet, or the graph does not show all uses.
        """
        self.plans += 1
        graph = find_uses(batch.roots, params)
        _check(graph)
        lengths = tuple(map(len, batch.lists))
        others = {
            i
            for use in graph.uses
            if not (supported(use.node, use.inputs) and candidates(use.shape, lengths))
            for i in use.params
        }
        # A hook on a parameter may change its gradient, which δ does not show.
        others |= {i for use in graph.uses for i in use.params if params[i]._backward_hooks}
        uses = _without(graph.uses, others)
        check = self.plans.bit_count() == 1 if self.plans < 100 else self.plans % 100 == 0
        placements = self._placements(uses, batch, params, check=check)
        found = {use.node: each for use, each in zip(uses, placements, strict=True)}
        # Two parameters multiplied with each other are no rows of data, and were only taken for such by their size.
        others |= {i for use in uses if not found[use.node] and use.only_parameters for i in use.params}
        uses = _without(uses, others)
        for use in uses:
            if not found[use.node]:
                where = ", ".join(names[i] for i in sorted(use.params))
                why = "batch normalisation in training" if graph.batch_norm else "batch statistics or a shared loss"
                raise UnsupportedError(
                    f"engine one_pass: examples of different tasks meet in the layer of {where}, for example by {why}, "
                    "or its rows are not those of tasks= and cats.engines.rows(): use engine='per_task'"
                )
        return Plan(graph, {use: found[use.node][0] for use in uses}, sorted(others), check)

    def _placements(
        self, uses: Sequence[Use], batch: Batch, params: Sequence[Tensor], *, check: bool
    ) -> list[tuple[Placement, ...]]:
        """For each use the placements that are possible. If there are several, they say the same of this batch."""
        lengths = tuple(map(len, batch.lists))
        if len(batch.tasks) == 1:  # every row that matters is this task's
            return [candidates(use.shape, lengths)[:1] for use in uses]
        keys = _keys(uses)
        known = [
            tuple(p for p in self.placements.get(key, ()) if p in candidates(use.shape, lengths))
            for key, use in zip(keys, uses, strict=True)
        ]
        clear = all(len(found) > 0 and _agree(found, use, batch) for found, use in zip(known, uses, strict=True))
        if clear and not check:
            return known
        found = masked_gradients_show(uses, batch, params)
        for key, (placements, seen) in zip(keys, found, strict=True):
            if seen:
                self.placements[key] = placements
        return [placements for placements, _ in found]


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


def _without(uses: Sequence[Use], others: set[int]) -> list[Use]:
    """The uses without the inputs that are, or are views of, these parameters."""
    kept = []
    for use in uses:
        inputs = {i: source for i, source in use.inputs.items() if source.param not in others}
        if len(inputs) == len(use.inputs):
            kept.append(use)
        elif inputs:
            kept.append(Use(use.node, inputs))
    return kept


def _keys(uses: Sequence[Use]) -> list[Key]:
    seen: Counter[Key] = Counter()
    keys = []
    for use in uses:
        kind = (use.name, tuple(sorted((i, source.param) for i, source in use.inputs.items())))
        keys.append((*kind, seen[kind]))
        seen[kind] += 1
    return keys


def _agree(placements: Sequence[Placement], use: Use, batch: Batch) -> bool:
    """Whether all of them give every row the same task."""
    if len(placements) == 1:
        return True
    if len({(p.dim, p.dims) for p in placements}) > 1:
        return False
    first, *rest = (p.tasks(use.shape, batch.lists) for p in placements)
    return all(first.equal(each) for each in rest)
