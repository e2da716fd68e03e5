"""The losses and gradients that backward() calls accumulate between two steps."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .distributed import Reducer, Statistics
from .engines.autograd import uncompiled
from .engines.choose import Engines
from .engines.examples import Examples
from .engines.losses import TaskLosses
from .engines.pending import Computed, Pending, UnsupportedError
from .engines.per_task import TaskGradients, task_gradients
from .engines.repeat import Repeats
from .engines.weighted import weighted_backward
from .gradients import Gradient, add, add_to_grad, dense, grads_restored_on_error, largest, take_grads
from .step_weights import StepWeights
from .tasks import Task
from .weighting import Weighting
from .weighting.checks import needs_per_task


class Accumulation:
    """The losses, gradients, dots and norms of the backward() calls since the last step().

    Several calls give the same result as one call with a large batch: the losses of a task are added, and so are its
    gradients. Dots <g_n, ḡ> and squared norms ‖g_n‖² are those of the sums. ḡ = Σ w_n g_n is added to ``p.grad``, which
    may hold gradients that other code wrote there.

    Args:
        params: the parameters that require grad, the shared ones first.
        shared: how many of them are shared. Only these enter dots, norms and the Gram matrix.
        tasks: the names of all N tasks.
        names: the names of the parameters in error messages.
        weighting: the optimizer's weighting. If its weights follow from the step, it computes them here.
        reducer: combines gradients and numbers over the processes.
        engines: computes <g_n, ḡ>.
        outer: whether <g_n, ḡ> is needed. If not, the backward pass of the weighted loss is enough.
        due: whether the weighting is updated at this step.
        rates: by which ḡ is multiplied to get d of <g_n, d>, element by element; None: d is ḡ, or ``direction``.
        direction: d of <g_n, d>, if it is not ḡ but known already: one tensor or None for each of ``params``.
        step: the number of steps taken before. With the number of the call, it seeds random samples.
        backend: the backend of :mod:`cats.ops`, or None.
        groups: the group of each parameter and the number of groups, if the weighting has groups.

    Attributes:
        calls: the number of backward() calls.
        engine: the name of the engine, after the first call of an outer step.
        numbers_known: whether <g_n, ḡ> is known. It is not if the engine did not know which backward() call was the
            last, and has freed what it needs.
        losses: {task index: loss, 0-d float64 on the device}, in the order of the tasks.
        weights: (N,) float64 on the CPU, the weights of all tasks in ḡ. None if they were known before the step, and no
            per-task gradients were combined.
        scale: GradScaler's scale, 0-d, if a scaler is used.
    """

    def __init__(
        self,
        params: list[Tensor],
        shared: int,
        tasks: Sequence[Task],
        *,
        names: Sequence[str],
        weighting: Weighting,
        reducer: Reducer,
        engines: Engines,
        outer: bool,
        due: bool,
        rates: Gradient | None,
        direction: Gradient | None,
        step: int,
        backend: str | None,
        groups: tuple[Sequence[int], int] | None = None,
    ) -> None:
        self.params = params
        self.tasks = tasks
        self.names = names
        self.weighting = weighting
        self.reducer = reducer
        self.engines = engines
        self.engine: str | None = None
        self.outer = outer
        self.due = due
        self.rates, self.direction = rates, direction
        self.step = step
        self.numbers_known = False
        self.calls = 0
        self.losses: dict[int, Tensor] = {}
        self.weights: Tensor | None = None
        self.scale: Tensor | None = None
        index, count = groups or (None, 1)
        self._gradients = TaskGradients(
            params,
            shared,
            cross_batch=weighting.cross_batch,
            backend=backend,
            groups=index,
            group_count=count,
            rule=weighting.combine if weighting.combines else None,
            # Several processes exchange dense gradients.
            sparse=not (self._refuses_sparse or weighting.needs_gram or reducer.averages or reducer.whole_backward),
        )
        self._sqnorm: float | None = None  # ‖ḡ‖², if the weights differ between groups of parameters
        self._dots: Tensor | None = None  # (K,) float64 on the device
        self._sqnorms: Tensor | None = None  # (K,) float64 on the device
        self._pending: list[Pending] = []  # what calls of an engine with one backward pass left, until ḡ is final
        self._lost = False  # whether this is not there any more
        self._own: Gradient | None = None  # ḡ, if ``p.grad`` also holds gradients of other code
        self._largest = torch.zeros((), device=params[0].device)  # max |p.grad|, 0-d
        self._step_weights = StepWeights(weighting, reducer, tasks, params)
        self._repeats: list[Repeats] = []  # of each call, for the losses after the step
        self._freed = False

    def copy(self) -> Accumulation:
        """A copy to which more losses can be added while this one stays as it is."""
        twin = copy.copy(self)
        twin.losses = dict(self.losses)
        twin._gradients = self._gradients.copy()
        twin._pending, twin._repeats = list(self._pending), list(self._repeats)
        return twin

    def add(
        self,
        losses: TaskLosses | Examples,
        weights: Tensor,
        scaler: torch.amp.GradScaler | None,
        last: bool | None = None,
    ) -> None:
        """Adds the gradient of Σ w_n L_n to ``p.grad``, and if it is an outer step, <g_n, ḡ> too.

        Args:
            losses: those of this call. With ``cross_batch`` each task of an outer step must have two.
            weights: (N,) float64 on the CPU, the weights of all tasks. If they follow from the step, the weighting
                computes new ones for the tasks present.
            scaler: the GradScaler, or None.
            last: whether this is the last call of the step. None: it is if the step before had as many calls.

        Raises:
            TypeError: a loss is a tensor, and the weighting needs the losses again after the step.
            ValueError: there are no losses, or <g_n, ḡ> is due and no shared parameter requires grad.
            RuntimeError: earlier losses had a scaler and these have none, or the other way round. Or the reducer does
                not support the parameters or the weighting. Or a step() that failed has freed the K gradients. Or the
                weights of an earlier call followed from its losses alone.
        """
        if last is None and self.engines.calls_per_step is not None:
            last = self.calls + 1 == self.engines.calls_per_step
        self._check(losses, scaler, last)
        if self.weighting.losses_again and self.due:
            losses = self._noted(losses)
        if self.outer:
            self._add_outer(losses, weights, last)
        else:
            self._add_weighted(losses, weights)
        self._largest = largest(self.params)

    def _check(self, losses: TaskLosses | Examples, scaler: torch.amp.GradScaler | None, last: bool | None) -> None:
        """Checks that these losses can be added, chooses the engine, and takes the scale of the GradScaler."""
        if self._freed:
            raise RuntimeError("the last step() failed: call step() again, or zero_grad() to discard its gradients")
        scaled = scaler is not None and scaler.is_enabled()
        if self.losses and scaled != (self.scale is not None):
            raise RuntimeError("pass the GradScaler to every backward() between two steps, or to none of them")
        if scaler is not None and scaled:
            self.scale = self._gradients.scale = scaler.scale(torch.ones((), device=self.params[0].device))
        self.calls += 1
        if self.weighting.needs_losses and self.calls == 1 and last is False:
            self.outer = True  # the weights follow from the losses of all calls, so until then there are K gradients
        elif self.weighting.needs_losses and self.calls > 1 and not self.outer:
            raise RuntimeError(
                f"{type(self.weighting).__name__} computes the weights from the losses of a step before its backward "
                "pass: if a step has several backward() calls, pass last=False to all but the last one"
            )
        if self.outer and self.engine is None:
            self.engine = self._choose(losses)
        self._check_reducer(losses)
        if self.outer and self._gradients.shared == 0:
            raise ValueError("no shared parameter requires grad")

    def _noted(self, losses: TaskLosses | Examples) -> TaskLosses | Examples:
        """The losses, to be evaluated such that :meth:`losses_after_step` can do it again."""
        name = type(self.weighting).__name__
        each = losses.losses if isinstance(losses, TaskLosses) else [losses.loss]
        if not all(map(callable, each)):
            raise TypeError(f"{name} evaluates the losses once more after the step: pass callables that return them")
        model, instead = self.engines.model, "use another weighting"
        self._repeats.append(Repeats(losses, self.params, user=name, instead=instead, model=model))
        return self._repeats[-1].noting

    def _add_weighted(self, losses: TaskLosses | Examples, weights: Tensor) -> None:
        """One backward pass for ḡ."""
        if self.weighting.needs_losses:
            losses, values = losses.evaluated()
            on_device = [value.to(self.params[0].device) for value in values]
            self.weights = weights = self._step_weights.from_losses(
                dict(sorted(zip(losses.tasks, on_device, strict=True))), weights
            )
        known = self._step_weights.checked_all(weights).tolist()
        with self.reducer.averaged(self.params) as before_last_pass:
            values = weighted_backward(
                losses,
                known,
                self.params,
                scale=self.scale,
                whole=self.reducer.whole_backward,
                before_last_pass=before_last_pass,
            )
            self._check_sparse([[p.grad for p in self.params]])
        self._add_losses(losses.tasks, values)

    def _add_outer(self, losses: TaskLosses | Examples, weights: Tensor, last: bool | None) -> None:
        """The same, and <g_n, ḡ> too. Some engines know ‖g_n‖² or the Gram matrix as well."""
        self._check_pairs(losses.tasks)
        # Without compiled code, a graph shows its layers. Checkpoints run them again in the backward pass, as before.
        lazy = self.engine == "one_pass" and isinstance(losses, Examples) and callable(losses.loss)
        with uncompiled() if lazy else nullcontext():
            if lazy:
                assert isinstance(losses, Examples)
                losses = dataclasses.replace(losses, loss=losses.evaluate())
            self._add_by_engine_or_another(losses, weights, last)

    def _add_by_engine_or_another(self, losses: TaskLosses | Examples, weights: Tensor, last: bool | None) -> None:
        try:
            with grads_restored_on_error(self.params):
                self._add_by_engine(losses, weights, last)
        except UnsupportedError as error:
            self.engines.refuse(error)
            self.engine = self._choose(losses)
            self._check_reducer(losses)
            if self.calls == 1:
                self._add_by_engine(losses, weights, last)
            else:  # what earlier calls left cannot be added to the numbers of another engine
                self.numbers_known, self._pending, self._lost = False, [], True
                self._add_weighted(losses, weights)

    def _add_by_engine(self, losses: TaskLosses | Examples, weights: Tensor, last: bool | None) -> None:
        if self._lost:
            self.numbers_known = False
            self._add_weighted(losses, weights)
        elif self.engine == "per_task":
            self._add_per_task(losses, weights)
        else:
            self._add_in_one_backward(losses, self._step_weights.checked_all(weights), last)

    def _add_in_one_backward(self, losses: TaskLosses | Examples, weights: Tensor, last: bool | None) -> None:
        """One backward pass for ḡ. <g_n, ḡ> is computed as soon as ḡ is final, from what every call leaves pending."""
        assert self.engine is not None
        if self.calls == 1 and self.direction is None and any(p.grad is not None for p in self.params):
            self._own = [None] * len(self.params)  # gradients of other code are not part of ḡ
        others = None if self._own is None else take_grads(self.params)
        if others is not None and self.reducer.whole_backward:  # p.grad may be memory that a wrapper writes over
            others = [None if g is None else g.clone() for g in others]
        values: list[Tensor] = []
        with self.reducer.averaged(self.params) as before_last_pass:
            if losses.tasks:  # this process may have no examples, and takes part all the same
                values, pending = self.engines.backward(
                    self.engine,
                    losses,
                    weights.tolist(),
                    self.params,
                    self._gradients.shared,
                    names=self.names,
                    scale=self.scale,
                    sample_seed=(self.step << 16) + self.calls,
                    immediate=bool(last) and self.calls == 1 and not self.reducer.averages and self.rates is None,
                    direction=self.direction,
                    whole=self.reducer.whole_backward,
                    before_last_pass=before_last_pass,
                )
                self._pending.append(pending)
            self._check_sparse([[p.grad for p in self.params]])
        if self._own is not None and others is not None:
            new = take_grads(self.params)
            self._own = add(self._own, new)
            for p, g in zip(self.params, add(others, new), strict=True):
                p.grad = g
        self._add_losses(losses.tasks, values)
        self.weights = weights
        if self.direction is not None:
            self._pending = [self._computed(pending, self.direction) for pending in self._pending]
        self.numbers_known = self.direction is not None or last is None or last
        if self.numbers_known:
            self._compute_dots(last=bool(last))
        if last and self.direction is None:  # frees graphs and activations. A further call makes the numbers unknown.
            self._pending, self._lost = [], True

    def _times_rates(self, combined: Gradient) -> Gradient:
        """The direction that is made of ḡ."""
        if self.rates is None:
            return combined
        pairs = zip(map(dense, combined), self.rates, strict=True)
        return [None if g is None or rate is None else g * rate for g, rate in pairs]

    def _computed(self, pending: Pending, direction: Gradient) -> Pending:
        if isinstance(pending, Computed):
            return pending
        dots, sqnorms = pending.dots(direction, last=True)
        return Computed({n: self._with_unscaled_direction(dot) for n, dot in dots.items()}, sqnorms)

    def _with_unscaled_direction(self, dots: Tensor) -> Tensor:
        """Engines divide by GradScaler's scale twice, because ḡ has it too. A direction that is known does not."""
        return dots if self.scale is None else dots * self.scale.double()

    def _compute_dots(self, *, last: bool) -> None:
        direction = self._times_rates([p.grad for p in self.params] if self._own is None else self._own)
        dots: dict[int, Tensor] = {}
        sqnorms: dict[int, Tensor] | None = None
        for pending in self._pending:
            found, sqnorms = pending.dots(direction, last=last)
            for n, value in found.items():
                dots[n] = dots[n] + value if n in dots else value
        device = self.params[0].device
        if dots:
            self._dots = torch.stack([dots[n].to(device) for n in self.losses])
            # Norms of parts do not add up to the norm of the whole.
            norms = sqnorms if len(self._pending) == 1 else None
            self._sqnorms = None if norms is None else torch.stack([norms[n].to(device) for n in self.losses])

    def _check_reducer(self, losses: TaskLosses | Examples) -> None:
        per_task = self.outer and self.engine == "per_task"
        reason = self.engines.reason
        if self.weighting.needs_losses:
            reason = f"{type(self.weighting).__name__} knows its weights after the last backward() of a step only"
        self.reducer.check(losses.tasks, self.params, self.weighting, per_task=per_task, reason=reason)

    def _choose(self, losses: TaskLosses | Examples) -> str:
        if not self.due or self.weighting.losses_only or not losses.tasks:
            return "per_task"
        return self.engines.choose(
            losses,
            self.params,
            needs=needs_per_task(self.weighting),
            alone=not self.reducer.averages,
        )

    def _add_per_task(self, losses: TaskLosses | Examples, weights: Tensor) -> None:
        """One gradient g_n per task, and ḡ = Σ w_n g_n of them."""
        if not self.weighting.follows:
            weights = self._step_weights.checked_all(weights)
        values, gradients = task_gradients(losses, self.params, scale=self.scale, whole=self.reducer.whole_backward)
        self._check_sparse(gradients)
        if not self._gradients.sparse:
            gradients = [list(map(dense, gradient)) for gradient in gradients]
        with torch.no_grad():
            exchanged = self.reducer.exchanged
            tasks, values, gradients = exchanged(self._gradients, losses.tasks, values, gradients, len(self.tasks))
            self._add_losses(tasks, values)
            if self.weighting.needs_gram:
                self._gradients.take_back()
                self._gradients.add(tasks, gradients)
                found = self._step_weights.from_gram(self._gradients, self.losses, weights)
                self.weights, self._dots, self._sqnorms, self._sqnorm = found
                add_to_grad(self.params, self._gradients.combination())
            else:
                if self.weighting.needs_losses:
                    weights = self._step_weights.from_losses(self.losses, weights)
                self.weights = weights
                self._dots, self._sqnorms = self.reducer.combine(self._gradients, tasks, gradients, weights)
                if self.rates is not None and self._gradients.rows:
                    combined = self._gradients.combined or self._gradients.combination()
                    self._dots = self._gradients.dots(self._times_rates(combined))
                if self.direction is not None and self._gradients.rows:
                    self._dots = self._with_unscaled_direction(self._gradients.dots(self.direction))
        self.numbers_known = True

    def sqnorm(self, seen: Statistics) -> float:
        """‖ḡ‖² over all processes, Σ w_n <g_n, ḡ>, or an estimate of it with ``cross_batch``."""
        if self._sqnorm is not None:
            return self._sqnorm
        assert self.weights is not None
        return (self.weights[seen.tasks] @ seen.dots).item()

    @property
    def _refuses_sparse(self) -> bool:
        # Most steps of such a weighting may need no per-task gradients, but one of the next steps does.
        return self.weighting.period > 0 and not self.weighting.losses_only

    def _check_sparse(self, gradients: Iterable[Gradient]) -> None:
        if self._refuses_sparse and any(g is not None and g.is_sparse for gradient in gradients for g in gradient):
            raise TypeError(
                f"a parameter has a sparse gradient, which steps with per-task gradients cannot use, and "
                f"{type(self.weighting).__name__} needs such steps: use sparse=False in embeddings"
            )

    def _add_losses(self, tasks: list[int], values: list[Tensor]) -> None:
        halves = len(set(tasks)) < len(tasks)
        for n, value in zip(tasks, values, strict=True):
            value = value.to(self.params[0].device)
            if halves:
                value = value / tasks.count(n)
            self.losses[n] = self.losses[n] + value if n in self.losses else value
        self.losses = dict(sorted(self.losses.items()))

    def _check_pairs(self, tasks: list[int]) -> None:
        if self.weighting.cross_batch:
            for n in tasks:
                if tasks.count(n) != 2:
                    raise ValueError(
                        f"loss of task {self.tasks[n]!r}: this step needs a pair of losses from two independent halves "
                        "of its batch (cross_batch, needs_task_gradients)"
                    )

    def statistics(self, found_inf: Tensor | None) -> Statistics:
        """The numbers of the step over all processes, on the host. Reading them is the only host sync of a step.

        Args:
            found_inf: from GradScaler, one element. It is positive if a gradient is not finite. None: no GradScaler.
        """
        verdict = self._largest if found_inf is None else torch.where(found_inf > 0, math.inf, self._largest)
        known = self.numbers_known
        return self.reducer.statistics(self.losses, self._dots, self._sqnorms, verdict, len(self.tasks), known=known)

    def free(self) -> None:
        """Frees the K gradients, so that the base optimizer can use their memory. The numbers stay."""
        self._gradients.free()
        self._pending = []
        self._freed = self.outer

    def losses_after_step(self) -> tuple[list[int], Tensor]:
        """The tasks, and the losses with the parameters as they are now, (K,) on the CPU. Has one host sync."""
        total: dict[int, Tensor] = {}
        for repeats in self._repeats:
            for n, value in repeats.losses_now().items():
                value = value.to(self.params[0].device)
                total[n] = total[n] + value if n in total else value
        return self.reducer.loss_totals(dict(sorted(total.items())), self.params, len(self.tasks))

    def discard(self) -> None:
        """Restores the state that the weighting had before it saw these gradients."""
        self._step_weights.discard()
