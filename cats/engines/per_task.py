"""One gradient per task: K backward passes compute K gradients, which stay in memory until they are combined."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from cats import ops
from cats.gradients import Gradient, add, add_to_grad, dense, position

from .autograd import compiled_graphs_explained, gradient, needed_again
from .examples import Examples
from .losses import TaskLosses, evaluate, number, seed, square


def task_gradients(
    losses: TaskLosses | Examples,
    params: Sequence[Tensor],
    *,
    scale: Tensor | None = None,
    whole: bool = False,
) -> tuple[list[Tensor], list[Gradient]]:
    """The values of the losses, 0-d float64, and one gradient per loss. ``p.grad`` is not touched.

    A callable's graph is freed as soon as its gradient is computed. Tensors may share a graph. It is freed after the
    last loss that needs it.

    Args:
        losses: see :func:`cats.engines.losses.evaluate` and :meth:`Examples.evaluate`, which also list the errors.
        params: the parameters to differentiate by. A gradient has one tensor per parameter, in this order, or None
            where the loss does not depend on the parameter.
        scale: GradScaler's scale, 0-d. The gradients are multiplied by it; the returned values are not.
        whole: whether each gradient comes from a plain backward pass of the whole graph, in which other leaves get
            gradients too.
    """
    if isinstance(losses, Examples):
        return _gradients_of_examples(losses, params, scale, whole)
    values: list[Tensor] = []
    gradients: list[Gradient] = []
    retained = needed_again([loss if isinstance(loss, Tensor) else None for loss in losses.losses])
    for loss, name, retain in zip(losses.losses, losses.names, retained, strict=True):
        value = evaluate(loss, name)
        with compiled_graphs_explained(f"loss of {name}"):
            gradients.append(gradient(value, seed(value, 1.0, scale), params, retain_graph=retain, whole=whole))
        values.append(number(value))
        del value  # otherwise its graph would stay alive during the next forward pass
    return values, gradients


def _gradients_of_examples(
    losses: Examples, params: Sequence[Tensor], scale: Tensor | None, whole: bool
) -> tuple[list[Tensor], list[Gradient]]:
    value = losses.evaluate()
    gradients = []
    for n in losses.tasks:
        start = losses.seed_of(value, n, scale)
        with compiled_graphs_explained("losses with tasks="):
            retain = n != losses.tasks[-1]
            gradients.append(gradient(value, start, params, retain_graph=retain, whole=whole))
    return losses.values(value), gradients


class Layout(Protocol):
    """How gradients are kept, if not as one tensor per parameter: in several processes, as shares of them.

    Attributes:
        shared: how many of the tensors that are kept belong to shared parameters. They are the first ones.
        groups: the group of each tensor that is kept.
        positions: for each of the :meth:`parts`, the number of its first element, see :func:`cats.gradients.position`.
    """

    shared: int
    groups: Sequence[int]

    @property
    def positions(self) -> Sequence[int]: ...

    def gather(self, share: Gradient) -> Gradient:
        """The gradient of the parameters, from what is kept."""

    def parts(self, share: Gradient) -> Gradient:
        """What is kept as views, of which each has elements of one parameter only."""

    def joined(self, parts: Gradient) -> Gradient:
        """What is kept, from one tensor for each of its parts."""


# From K gradients, the numbers of their tensors' first elements, K tasks and a backend to ḡ.
Rule: TypeAlias = Callable[[Sequence[Gradient], Sequence[int], Sequence[int], str | None], Gradient]


class TaskGradients:
    """The gradients g_n of the tasks, gathered over one or more backward() calls, and their combination ḡ = Σ w_n g_n.

    A task has one gradient. With ``cross_batch`` it has two, of two independent halves A and B of its batch, and
    g_n = ½(g_n^A + g_n^B). Gradients of several calls add up.

    Args:
        params: the parameters, the shared ones first.
        shared: how many of them are shared. Only these enter dots, norms and the Gram matrix.
        cross_batch: whether a task has two gradients.
        backend: the backend of :mod:`cats.ops`, or None.
        groups: the group of each parameter, counted from 0. None: all are in group 0.
        group_count: the number of groups. Some may have no parameter here.
        rule: computes ḡ, if it is no weighted sum: :meth:`cats.weighting.Weighting.combine`.
        sparse: whether gradients may be sparse. ḡ of a parameter is sparse then if those of all tasks are, as after a
            backward pass of Σ w_n L_n. Only without groups, layout and rule.

    Attributes:
        rows: {task index: its one or two gradients}, in the order of the tasks.
        weights: (K,) float64 on the CPU, the w_n of :meth:`combination`, in the order of ``rows``; or (G, K), if there
            is more than one group. None before the first combination.
        layout: how the gradients are kept. None: as one tensor or None per parameter.
        combined: ḡ over all processes, if there are several. Otherwise None.
        scale: GradScaler's scale, 0-d. Gradients are scaled; dots, norms and the Gram matrix are not.
    """

    def __init__(
        self,
        params: list[Tensor],
        shared: int,
        *,
        cross_batch: bool,
        backend: str | None,
        groups: Sequence[int] | None = None,
        group_count: int = 1,
        rule: Rule | None = None,
        sparse: bool = False,
    ) -> None:
        self.params = params
        self.groups = [0] * len(params) if groups is None else groups
        self.group_count = group_count
        self.rule = rule
        self.sparse = sparse
        self.shared = shared
        self.halves = 2 if cross_batch else 1
        self.backend = backend
        self.rows: dict[int, list[Gradient]] = {}
        self.weights: Tensor | None = None
        self.layout: Layout | None = None
        self.combined: Gradient | None = None
        self.scale: Tensor | None = None

    def copy(self) -> TaskGradients:
        """A copy to which more gradients can be added while this one stays as it is. It shares the tensors."""
        twin = copy.copy(self)
        twin.rows = dict(self.rows)
        return twin

    def add(self, tasks: list[int], gradients: list[Gradient]) -> None:
        """Adds the gradients to those of their tasks. Empties the list, so that no gradient is kept twice."""
        new: dict[int, list[Gradient]] = {}
        for n in tasks:
            new.setdefault(n, []).append(gradients.pop(0))
        for n in list(new):
            rows = new.pop(n)
            self.rows[n] = list(map(add, self.rows[n], rows)) if n in self.rows else rows
        self.rows = dict(sorted(self.rows.items()))

    def take_back(self) -> None:
        """Subtracts ḡ of the gradients so far from ``p.grad``. A new combination will replace it."""
        if self.weights is not None:
            add_to_grad(self.params, self.combination(), alpha=-1.0)

    def free(self) -> None:
        """Frees all gradients. The weights stay."""
        self.rows.clear()
        self.combined = None

    def combination(self) -> Gradient:
        """ḡ of all parameters."""
        if self.rule is not None:
            return self._whole(self._by_rule(self.rule))
        assert self.weights is not None
        weights = self.weights.repeat_interleave(self.halves, dim=-1) / self.halves
        rows = self._all()
        if weights.dim() == 1:
            return self._whole(self._sparse_again(ops.combine(rows, weights, backend=self.backend), weights))
        kept = self.groups if self.layout is None else self.layout.groups
        combined: Gradient = [None] * len(kept)
        for group, own in enumerate(weights):
            places = [i for i, g in enumerate(kept) if g == group]
            if places:
                parts = ops.combine([[row[i] for i in places] for row in rows], own, backend=self.backend)
                for i, part in zip(places, parts, strict=True):
                    combined[i] = part
        return self._whole(combined)

    def combine_dots(self) -> tuple[Gradient, Tensor, Tensor]:
        """ḡ of all parameters; v_n = <g_n, ḡ> and ‖g_n‖² of the shared ones, (K,) float64. One pass over the gradients.

        With ``cross_batch``, v_n = ½(<g_n^A, ḡ^B> + <g_n^B, ḡ^A>), and ‖g_n‖² is the mean of the two halves' squared
        norms.
        """
        if self.rule is not None:
            return self._by_rule_and_dots(self.rule)
        assert self.weights is not None
        form = combine_dots_across if self.halves == 2 else combine_dots
        combined, dots, sqnorms = form(self._all(), self.weights, self._kept_shared, backend=self.backend)
        combined = self._sparse_again(combined, self.weights.repeat_interleave(self.halves) / self.halves)
        return self._whole(combined), dots / square(self.scale), sqnorms / square(self.scale)

    def _sparse_again(self, combined: Gradient, weights: Tensor) -> Gradient:
        """ḡ with sparse tensors where it should have them: some optimizers take no others. weights: of all rows."""
        if not self.sparse:
            return combined
        result: Gradient = []
        for g, *column in zip(combined, *self._kept(), strict=True):
            parts = [w * part for w, part in zip(weights.tolist(), column, strict=True) if part is not None]
            result.append(sum(parts[1:], parts[0]) if parts and all(part.is_sparse for part in parts) else g)
        return result

    def _by_rule(self, rule: Rule) -> Gradient:
        """ḡ as the gradients are kept."""
        rows, tasks, layout = self._all(), list(self.rows), self.layout
        if layout is None:
            positions = [position(self.params, i) for i in range(len(self.params))]
            return rule(rows, positions, tasks, self.backend)
        return layout.joined(rule([layout.parts(row) for row in rows], layout.positions, tasks, self.backend))

    def _by_rule_and_dots(self, rule: Rule) -> tuple[Gradient, Tensor, Tensor]:
        combined = self._by_rule(rule)
        rows = self._all_shared()
        dots = ops.dots(rows, combined[: self._kept_shared], backend=self.backend)
        sqnorms = torch.cat([ops.dots([row], row, backend=self.backend) for row in rows])
        return self._whole(combined), dots / square(self.scale), sqnorms / square(self.scale)

    def dots(self, direction: Gradient) -> Tensor:
        """<g_n, direction> of the shared parameters, (K,) float64. ``direction`` is scaled as the gradients are."""
        return ops.dots(self._all_shared(), direction[: self.shared], backend=self.backend) / square(self.scale)

    def gram(self) -> Tensor:
        """<g_i, g_j> of the shared parameters in each group, (G, K, K) float64."""
        groups = (self.groups if self.layout is None else self.layout.groups)[: self._kept_shared]
        found = ops.gram(self._all_shared(), groups=groups, backend=self.backend) / square(self.scale)
        return nn.functional.pad(found, (0, 0, 0, 0, 0, self.group_count - len(found)))  # the last ones may be empty

    def _kept(self) -> list[Gradient]:
        return [row for rows in self.rows.values() for row in rows]

    def _all(self) -> list[Gradient]:
        """All gradients as the operators take them: dense."""
        return [list(map(dense, row)) for row in self._kept()] if self.sparse else self._kept()

    def _all_shared(self) -> list[Gradient]:
        return [row[: self._kept_shared] for row in self._all()]

    @property
    def _kept_shared(self) -> int:
        return self.shared if self.layout is None else self.layout.shared

    def _whole(self, kept: Gradient) -> Gradient:
        return kept if self.layout is None else self.layout.gather(kept)


def combine_dots(
    gradients: Sequence[Gradient], weights: Tensor, shared: int, *, backend: str | None
) -> tuple[Gradient, Tensor, Tensor]:
    """ḡ = Σ w_n g_n of all parameters; v_n = <g_n, ḡ> and ‖g_n‖², (K,) float64, of the first ``shared`` parameters."""
    combined, dots, sqnorms = ops.combine_dots([g[:shared] for g in gradients], weights, backend=backend)
    return [*combined, *_combine_private(gradients, weights, shared, backend)], dots, sqnorms


def combine_dots_across(
    gradients: Sequence[Gradient], weights: Tensor, shared: int, *, backend: str | None
) -> tuple[Gradient, Tensor, Tensor]:
    """The same for two independent halves A, B of each task's batch: 2K gradients in the order A_1, B_1, A_2, B_2, ...

    g_n = ½(g_n^A + g_n^B), v_n = ½(<g_n^A, ḡ^B> + <g_n^B, ḡ^A>), and ‖g_n‖² is the mean of the halves' squared norms.
    """
    half_a, half_b = torch.zeros(2, len(gradients), dtype=weights.dtype, device=weights.device)
    half_a[0::2] = weights
    half_b[1::2] = weights
    mean = (half_a + half_b) / 2
    (combined, _, _), dots, sqnorms = ops.combine_dots(
        [g[:shared] for g in gradients], torch.stack([mean, half_a, half_b]), backend=backend
    )
    crossed = (dots[2, 0::2] + dots[1, 1::2]) / 2
    private = _combine_private(gradients, mean, shared, backend)
    return [*combined, *private], crossed, (sqnorms[0::2] + sqnorms[1::2]) / 2


def _combine_private(gradients: Sequence[Gradient], weights: Tensor, shared: int, backend: str | None) -> Gradient:
    private = [g[shared:] for g in gradients]
    return ops.combine(private, weights, backend=backend) if private[0] else []
