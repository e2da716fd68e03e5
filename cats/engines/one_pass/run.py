"""One backward pass of the weighted loss that also gives <g_n, ḡ> of all tasks.

The gradient ḡ = Σ w_n g_n of a parameter is a sum over the rows t of the layers that use it. δ_t, the gradient of a
layer's output, has the factor w_n of the task n of its row. So a layer's share of <g_n, ḡ> is the sum of <δ_t, y'_t>
over the rows t of task n, divided by w_n, where y' is the derivative of the output along ḡ (derivatives.py).

That needs the final ḡ of the layer's parameters: after the last use of each in the backward pass, or later if more
backward() calls or other processes add to it. Until then the layer's data and δ are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cats import ops
from cats.engines.autograd import add_gradients, check_unused, freed_graphs_explained, mark_used
from cats.engines.pending import UnsupportedError
from cats.gradients import Gradient, power_of_two

from .batch import Batch
from .derivatives import DERIVATIVES, SAMPLED, SLICED, Data, Derivative
from .graph import Use
from .placement import Measured, Placement, Sample
from .plan import Planner
from .segments import Segments, add_segment_gradients, by_segments

_BLOCK = 2**19  # elements of a layer's output that are computed at once: they stay in the cache


class OnePass:
    """The engine, which remembers how the rows of each layer are placed.

    Args:
        share: if given, <g_n, ḡ> is estimated from this share of the rows of most layers, without bias. ḡ is exact.
        backend: the backend of :mod:`cats.ops`, or None.
    """

    def __init__(self, share: float | None, backend: str | None) -> None:
        self.share, self.backend = share, backend
        self._planner = Planner()

    def backward(
        self,
        batch: Batch,
        weights: Sequence[float],
        params: Sequence[Tensor],
        shared: int,
        *,
        names: Sequence[str],
        scale: Tensor | None,
        seed: int = 0,
        immediate: bool,
        direction: Gradient | None = None,
        whole: bool,
        before_last_pass: Callable[[], None],
    ) -> LayerDots:
        """Adds ḡ to ``p.grad``.

        Args:
            weights: N numbers.
            params: the parameters that require grad, the shared ones first. names: for error messages.
            shared: how many of them enter <g_n, ḡ>.
            scale: GradScaler's scale, 0-d, by which ``batch.seeds`` are multiplied.
            seed: of the random sample of rows.
            immediate: whether ``p.grad`` is None before and ḡ is final after this call. Then a layer's data are freed
                during the backward pass.
            direction: d of <g_n, d>, if it is known now; None: it is ḡ. Then no layer has to wait for anything.
            whole, before_last_pass: see :func:`cats.engines.weighted.weighted_backward`.

        Raises:
            UnsupportedError: see :meth:`Planner.plan`; or the check has shown that a use of a parameter was missed.
            RuntimeError: a parameter got its gradient from a function that uses it out of sight of autograd.
        """
        plan = self._planner.plan(batch, params, shared, names)
        check_unused(use.node for use in plan.uses)
        missing = [n for n in batch.tasks if weights[n] == 0]  # no δ shows their gradient
        # The check needs the gradient of this call alone in p.grad. A wrapper has averaged it after the backward pass.
        # It needs all rows, too. A run that goes on from a checkpoint checks more, and must draw the same sample.
        check = plan.check and self.share is None and not whole and all(p.grad is None for p in params[:shared])
        dots = LayerDots(
            batch, plan.uses, weights, params[:shared], plan.others, missing, scale, self.backend, check=check
        )
        segments: set[Use] = set()
        if immediate and not whole and self.share is None and not (missing or plan.graph.opaque or plan.check):
            segments = by_segments(plan.graph, plan.uses, params, plan.others, len(batch.tasks))
        done = {i for use in segments for i in use.params}
        final = params[:shared] if immediate and direction is None else []
        known = None if check else direction  # the check takes ḡ
        # As in x + p, a δ may be the gradient of a parameter, too, to which a later call adds.
        copied = set() if final or known is not None else {p.shape for p in params}
        recorder = _Recorder(plan.uses, dots, final, segments, self.share, seed, known, copied)
        seen = {i for use in plan.uses for i in use.params} | set(plan.others)
        unseen = [i for i, p in enumerate(params[:shared]) if i not in seen and p.grad is None]
        try:
            retain = bool(plan.others or missing or check)
            seeds = batch.seeds(weights)
            rest = [p for i, p in enumerate(params) if i not in done]
            add_gradients(batch.roots, seeds, rest, retain_graph=retain, whole=whole, before=before_last_pass)
        finally:
            recorder.remove()
        for i in unseen:
            if params[i].grad is not None:
                raise RuntimeError(
                    f"engine one_pass: {names[i]} got a gradient from a function that uses it out of sight of "
                    "autograd: use engine='per_task'"
                )
        if immediate and direction is None:
            dots.finish()
        if check:
            dots.compare_with(params[:shared])
        if retain:
            mark_used([*(root.grad_fn for root in batch.roots), *(use.node for use in plan.uses)])
        return dots


class LayerDots:
    """<g_n, ḡ> of the tasks of one backward() call: what was computed so far, and the layers that wait for ḡ.

    Attributes:
        waiting: {use: what was recorded of it}.
        complete: whether everything was computed during the backward pass, with the final ḡ.
    """

    def __init__(
        self,
        batch: Batch,
        uses: dict[Use, Placement | Measured],
        weights: Sequence[float],
        params: Sequence[Tensor],
        others: list[int],
        missing: list[int],
        scale: Tensor | None,
        backend: str | None,
        *,
        check: bool,
    ) -> None:
        self.batch, self.uses, self.weights, self.params = batch, uses, weights, params
        self.others, self.missing = others, missing
        self.scale, self.backend = scale, backend
        self.waiting: dict[Use, Record] = {}
        self.complete = False
        self.sizes: list[tuple[Tensor, float]] | None = [] if check else None  # Σ |δ y'| of layers, precision of δ
        # The shares of the layers. They are added in the order of the forward pass, whenever they were computed: the
        # same step gives the same bits, whether it is the first after a resume or not.
        self._shares: dict[Use, Tensor | None] = dict.fromkeys(uses)
        self._none = torch.zeros(batch.total, dtype=torch.float64, device=params[0].device)

    def add(self, use: Use, record: Record, direction: Callable[[int], Tensor | None]) -> None:
        """Adds the share of one layer. direction: gives ḡ of a parameter by its number."""
        found = {i: direction(source.param) for i, source in use.inputs.items()}
        factor = _factor(found.values()) if record.delta.dtype == torch.float16 else None
        tangents = {}
        for i, source in use.inputs.items():
            g, p = found[i], self.params[source.param]
            g = torch.zeros_like(p) if g is None else g if factor is None else g * factor
            tangents[i] = source.view(g.to(p.dtype))  # p.grad_dtype may be another one
        sums = record.dots(tangents, self.batch.total, self.backend, self.sizes)
        self._shares[use] = (sums if factor is None else sums / factor).to(self._none.device)

    def add_numbers(self, use: Use, numbers: Tensor) -> None:
        """Adds the share of one layer: numbers of the tasks of this call, with the factor w_n."""
        share = self._none.clone()
        share[self.batch.tasks] = numbers.to(share.device)
        self._shares[use] = share

    def _sums(self) -> Tensor:
        """(N,) the sum of the shares of all layers, with the factor w_n."""
        known = [share for share in self._shares.values() if share is not None]
        return torch.stack([self._none, *known]).sum(0)

    def finish(self) -> None:
        """Adds the shares of the layers that still wait. ḡ is in ``p.grad``."""
        self._add_waiting([p.grad for p in self.params])
        self.waiting.clear()
        self.complete = True

    @torch.no_grad()
    def _add_waiting(self, direction: Gradient) -> None:
        for use, record in self.waiting.items():
            self.add(use, record, direction.__getitem__)

    @torch.no_grad()
    def compare_with(self, params: Sequence[Tensor]) -> None:
        """Checks that Σ w_n <g_n, ḡ> is ‖ḡ‖², as it must be if no use of a parameter was missed.

        Here ḡ is that of this call and this process. That shows as much as the final ḡ, which may come later. The
        parameters that the gradient of each task is computed of are not counted.

        Raises:
            UnsupportedError: it is not.
        """
        assert self.sizes is not None
        self._add_waiting([p.grad for p in self.params])
        found = self._sums().sum().item()
        grads = [p.grad for i, p in enumerate(params) if p.grad is not None and i not in self.others]
        expected = sum(g.double().square().sum().item() for g in grads)
        size, precision = expected + sum(x.item() for x, _ in self.sizes), max([0.0, *(eps for _, eps in self.sizes)])
        self.sizes = None
        # Rounding errors are far below this. Where the tasks' gradients cancel, ‖ḡ‖² is, too, but not the sum of sizes.
        if math.isfinite(found) and math.isfinite(size) and abs(found - expected) > precision**0.5 * size:
            raise UnsupportedError(
                f"engine one_pass: Σ w_n <g_n, ḡ> is {found:g}, but ‖ḡ‖² is {expected:g}: a use of a parameter was "
                "missed; use engine='per_task'"
            )

    def dots(self, direction: Gradient, *, last: bool) -> tuple[dict[int, Tensor], None]:
        """See :class:`cats.engines.pending.Pending`."""
        if not self.complete:
            self._add_waiting(direction)
        return self._by_task(direction), None

    def _by_task(self, direction: Gradient) -> dict[int, Tensor]:
        sums = self._sums()
        scale = 1.0 if self.scale is None else self.scale.double().to(sums.device)
        weights = sums.new_tensor([w or 1.0 for w in self.weights])
        result = dict(enumerate((sums / weights / scale**2).unbind()))
        if len(self.missing) > 1 and not self.others:
            together = self._of_missing_tasks(direction) / scale**2
            return {n: together[n] if n in self.missing else result[n] for n in self.batch.tasks}
        for n in self.batch.tasks if self.others else self.missing:
            if n in self.missing:
                result[n] = self._from_gradient(n, range(len(self.params)), direction) / scale**2
            else:
                result[n] = result[n] + self._from_gradient(n, self.others, direction) / scale**2
        return {n: result[n] for n in self.batch.tasks}

    def _of_missing_tasks(self, direction: Gradient) -> Tensor:
        """(N,) <g_n, ḡ> of the tasks with weight 0, from one more backward pass, of the sum of their losses."""
        weights = [float(n in self.missing) for n in range(self.batch.total)]
        dots = LayerDots(self.batch, self.uses, weights, self.params, [], [], None, self.backend, check=False)
        recorder = _Recorder(self.uses, dots, [], set(), None, 0, direction)
        seeds = self.batch.seeds(weights)
        try:
            with freed_graphs_explained():
                torch.autograd.grad(self.batch.roots, self.params, seeds, retain_graph=True, allow_unused=True)
        finally:
            recorder.remove()
        return dots._sums()

    def _from_gradient(self, task: int, chosen: Sequence[int], direction: Gradient) -> Tensor:
        """Σ <g_n, ḡ> over some parameters, from their gradients of the task."""
        seeds = self.batch.seeds([float(n == task) for n in range(self.batch.total)])
        params = [self.params[i] for i in chosen]
        with freed_graphs_explained():
            gradient = torch.autograd.grad(self.batch.roots, params, seeds, retain_graph=True, allow_unused=True)
        return ops.dots([list(gradient)], [direction[i] for i in chosen], backend=self.backend)[0]


def _factor(direction: Iterable[Tensor | None]) -> Tensor:
    """A power of two, 0-d float64. Times this the direction, which a GradScaler may have scaled, has a norm of about 1.

    Then the derivatives along it fit into float16, like the activations.
    """
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in direction if g is not None]
    largest = torch.stack(norms).amax() if norms else torch.zeros(())
    return power_of_two(largest.double().reciprocal())


class Record:
    """A use of parameters in the backward pass: the gradient δ of its output, and how its output depends on them.

    Args:
        delta: δ, or some rows of it. placement: where its rows are.
        tasks: (rows,) the task of each row. factor: (N,) by which the numbers of each task are multiplied, or None.
        derivative: see derivatives.py. data: what it has read. sliced: whether it can be computed for a slice of rows.
    """

    def __init__(
        self,
        delta: Tensor,
        placement: Placement | Measured,
        tasks: Tensor,
        factor: Tensor | None,
        derivative: Derivative,
        data: Data,
        *,
        sliced: bool,
    ) -> None:
        self.delta, self.tasks, self.factor, self.placement = delta, tasks, factor, placement
        self.derivative, self.sliced = derivative, sliced
        self._data, self._version = data, delta._version

    def dots(
        self,
        tangents: dict[int, Tensor],
        total: int,
        backend: str | None,
        sizes: list[tuple[Tensor, float]] | None,
    ) -> Tensor:
        """(total,) float64: for each task, the sum of <δ_t, y'_t> over its rows. ``sizes`` gets that of |δ y'|."""
        if self._data.changed() or self.delta._version != self._version:
            raise RuntimeError(
                "engine one_pass: an input or a gradient of a layer was changed in place between two backward() calls "
                "of a step: give every call tensors of its own, or use engine='per_task'"
            )
        if self.sliced and self.placement.first and self.delta.numel() > _BLOCK:
            sums = torch.zeros(total, dtype=torch.float64, device=self.delta.device)
            rows = max(64, _BLOCK // self.delta.shape[1])
            for start in range(0, len(self.delta), rows):
                part = slice(start, start + rows)
                y = self.derivative(tangents, part).expand_as(self.delta[part])
                sums += ops.row_dots(self.delta[part], y, self.tasks[part], total, backend=backend)
                self._note_size(self.delta[part], y, sizes)
        else:
            y = self.derivative(tangents).expand_as(self.delta)
            x, y = self.placement.as_rows(self.delta), self.placement.as_rows(y)
            sums = ops.row_dots(x, y, self.tasks, total, backend=backend)
            self._note_size(x, y, sizes)
        return sums if self.factor is None else sums * self.factor

    def _note_size(self, x: Tensor, y: Tensor, sizes: list[tuple[Tensor, float]] | None) -> None:
        if sizes is not None:
            precision = max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps)
            sizes.append(((x * y).abs_().sum(dtype=torch.float64), precision))


class _Recorder:
    """Hooks that record the uses in the backward pass.

    With ``final`` parameters, or with a ``direction`` that is known, they also compute the dots there. A δ of a shape
    in ``copied`` is copied.
    """

    def __init__(
        self,
        uses: dict[Use, Placement | Measured],
        dots: LayerDots,
        final: Sequence[Tensor],
        segments: set[Use],
        share: float | None,
        seed: int,
        direction: Gradient | None,
        copied: Collection[torch.Size] = (),
    ) -> None:
        self.uses, self.dots, self.share, self.direction = uses, dots, share, direction
        self.params, self.segments, self.copied = final, segments, copied
        self._sorted: dict[Any, Segments] = {}
        self._lists: dict[Any, Tensor] = {}
        self._samples: dict[Any, Sample] = {}
        self._random = torch.Generator().manual_seed(seed)
        self._uses_of: dict[int, list[Use]] = {}
        self._open = {use: len(use.params) for use in uses}  # how many of its parameters have no final ḡ yet
        self._hooks: list[Any] = [use.node.register_prehook(self._record(use)) for use in uses]
        for use in uses.keys() - segments if final else ():
            for i in use.params:
                self._uses_of.setdefault(i, []).append(use)
        self._hooks += [final[i].register_post_accumulate_grad_hook(self._finish(i)) for i in self._uses_of]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _record(self, use: Use) -> Callable[[tuple[Tensor | None, ...]], None]:
        def record(gradients: tuple[Tensor | None, ...]) -> None:
            delta = gradients[0]
            if delta is None:
                return
            with torch.no_grad():
                if use in self.segments:
                    self._add_segments(use, self.uses[use], delta.detach())
                    return
                delta = delta.detach()
                record = self._read(use, self.uses[use], delta.clone() if delta.shape in self.copied else delta)
                if self.direction is None:
                    self.dots.waiting[use] = record
                else:
                    self.dots.add(use, record, self.direction.__getitem__)

        return record

    def _add_segments(self, use: Use, placement: Placement | Measured, delta: Tensor) -> None:
        batch = self.dots.batch
        key = (placement, len(delta))
        if key not in self._sorted:
            self._sorted[key] = Segments(placement.tasks(delta.shape, batch.lists), batch.tasks, batch.total)
        segments, backend = self._sorted[key], self.dots.backend
        numbers = add_segment_gradients(use, delta, segments, self.dots.params, self.direction, backend)
        self.dots.add_numbers(use, numbers)

    def _read(self, use: Use, placement: Placement | Measured, delta: Tensor) -> Record:
        key = (placement, placement.rows(delta.shape), delta.device)
        if key not in self._lists:
            self._lists[key] = placement.tasks(delta.shape, self.dots.batch.lists).to(delta.device)
        tasks = self._lists[key]
        _, capture = DERIVATIVES[use.name]
        if self.share is None or use.name not in SAMPLED or not placement.first:
            data = Data(use.node)
            derivative = capture(use.node, use.inputs.keys(), data)
            return Record(delta, placement, tasks, None, derivative, data, sliced=use.name in SLICED)
        if key not in self._samples:
            self._samples[key] = Sample(tasks, self.dots.batch.total, self.share, self._random)
        sample = self._samples[key]
        data = Data(use.node, lambda x: x.index_select(0, sample.index))
        derivative = capture(use.node, use.inputs.keys(), data)
        delta = delta.index_select(0, sample.index)
        return Record(delta, placement, sample.tasks, sample.factor, derivative, data, sliced=use.name in SLICED)

    def _finish(self, param: int) -> Callable[[Tensor], None]:
        def finish(_: Tensor) -> None:
            for use in self._uses_of[param]:
                self._open[use] -= 1
                if self._open[use] == 0 and use in self.dots.waiting:
                    with torch.no_grad():
                        self.dots.add(use, self.dots.waiting.pop(use), lambda i: self.params[i].grad)

        return finish
