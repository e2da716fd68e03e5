"""The optimizer: per-task losses in, one step of any torch optimizer out, and the task weights moved beside it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import distributed, gradients, ops
from . import weighting as weightings
from .gradients import Gradient, Loss
from .weighting import Weighting
from .weighting import cats as defaults

Task: TypeAlias = str | int
TaskLoss: TypeAlias = Loss | tuple[Loss, Loss] | list[Loss]
Losses: TypeAlias = Mapping[Any, TaskLoss] | Sequence[TaskLoss]  # keys: Task (Mapping is invariant in them)


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient; the message names the tasks."""


@dataclass
class _Cycle:
    """What the backward() calls since the last step() have gathered, for the tasks seen so far."""

    params: list[Tensor]  # those that require grad, the shared ones first
    shared: int  # how many of them are shared
    per_task: bool
    scale: Tensor | None = None  # GradScaler's factor, 0-d
    losses: dict[int, Tensor] = field(default_factory=dict)  # 0-d float64, summed over the calls
    rows: dict[int, list[Gradient]] = field(default_factory=dict)  # g_n, likewise; two halves if cross-batch
    combined: Gradient | None = None  # ḡ over all processes, likewise; only where there are several
    weights: Tensor | None = None  # (K,) those that p.grad was combined with
    dots: Tensor | None = None  # (K,) unscaled
    sqnorms: Tensor | None = None  # (K,) unscaled
    largest: Tensor | None = None  # max |p.grad|, 0-d
    restore: dict[str, Any] | None = None  # the weighting's state before it saw this cycle's Gram matrix

    def all_rows(self) -> list[Gradient]:
        return [row for rows in self.rows.values() for row in rows]

    def square(self) -> Tensor | float:
        """By how much inner products of scaled gradients are too large."""
        return 1.0 if self.scale is None else self.scale.double() ** 2


class MultiTask(Optimizer):
    """Any torch optimizer, fed with a weighted combination of per-task gradients.

    It is a ``torch.optim.Optimizer``: ``param_groups``, ``state`` and ``defaults`` are the base optimizer's own, so
    learning-rate schedulers, hooks, ``zero_grad``, ``add_param_group`` and checkpoints work as everywhere. The loop::

        optimizer = cats.MultiTask(torch.optim.AdamW(model.parameters()), ["az", "be"], cats.weighting.Static([1, 2]))
        optimizer.zero_grad()
        optimizer.backward({"az": loss_az, "be": loss_be})  # in place of loss.backward()
        optimizer.step()

    Args:
        optimizer: the base optimizer. Its ``step()`` must work without a closure (so not LBFGS).
        tasks: the tasks' names, or how many there are (named 0, 1, ...).
        weighting: a :class:`cats.weighting.Weighting`, or a callable from a (K, K) Gram matrix to K weights, such as a
            TorchJD ``Weighting``. It keeps this optimizer's state: give every optimizer its own.
        shared: the parameters that enter dots, norms and the Gram matrix; by default all. The others (heads,
            language-specific layers) get Σ w_n g_n like any parameter but stay out of the statistics. Parameters added
            later are shared only if ``shared`` is None.
        engine: how per-task gradients are formed. "auto" keeps the K gradients and reads them once (twice for
            weightings that need the Gram matrix).
        backend: of :mod:`cats.ops`; None chooses.
        max_nonfinite: so many steps in a row with a non-finite loss or gradient are an error. Before that such a step
            leaves parameters, base optimizer, weights and multipliers as they are and is counted in
            :attr:`statistics`. The last attempt forms per-task gradients in order to name the task.

    With several processes (``torch.distributed`` is initialised) each passes the losses of its own batch, and all step
    alike, as if the loss of a task were the mean of theirs; where batches differ in size, a loss is the local sum over
    the count of all processes, times their number. The model must be the module itself, not wrapped in
    DistributedDataParallel, and every process must call backward() equally often; one without sentences passes no
    losses, ``backward({})``. What needs more than one all-reduce of gradients per call is refused: weightings that need
    the Gram matrix, and ``cross_batch``; the tasks' squared norms are nan. backward() then waits for the device, and
    what stands in ``p.grad`` by other ways is not averaged.

    Only the base optimizer's parameters receive gradients, and where per-task gradients are formed these are written to
    ``p.grad`` directly: post-accumulate-grad hooks do not see them. step() reads one small tensor back to the host
    (losses, dots and norms with the verdict on finiteness); weightings that need the Gram matrix read another one in
    backward().

    Raises:
        TypeError, ValueError: an argument is not what is described above.
        RuntimeError: the backend asked for cannot be used here.
    """

    # GradScaler then leaves unscaling and skipping to step(), which needs the verdict anyway: one host sync, not two.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: int | Iterable[Task],
        weighting: Weighting | Callable[[Tensor], Tensor],
        *,
        shared: Iterable[Tensor] | None = None,
        engine: str = "auto",
        backend: str | None = None,
        max_nonfinite: int = 20,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer instance, got {_describe(optimizer)}")
        if isinstance(optimizer, MultiTask):
            raise TypeError(f"optimizer is a {type(optimizer).__name__} already; pass its base optimizer")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TypeError(f"{type(optimizer).__name__} needs a closure in every step(), which is not supported")
        if getattr(weighting, "needs_gram", False) and getattr(weighting, "cross_batch", False):
            raise ValueError("a weighting with needs_gram cannot be cross_batch: its Gram matrix is of one batch")
        if engine != "auto":
            raise ValueError(f"engine={engine!r} does not exist; available: 'auto'")
        if backend is not None:
            usable = ops.backends()  # better now than at the first step that forms per-task gradients
            if backend not in usable:
                raise ValueError(f"there is no backend {backend!r}; the backends are {', '.join(usable)}")
            if usable[backend] is not None:
                raise RuntimeError(f"backend {backend!r} cannot be used here: {usable[backend]}")
        if isinstance(max_nonfinite, bool) or not isinstance(max_nonfinite, int) or max_nonfinite < 1:
            raise ValueError(f"max_nonfinite must be an integer of at least 1, got {max_nonfinite!r}")
        self.base = optimizer
        self.tasks = _task_names(tasks)
        self.weighting = weighting if isinstance(weighting, Weighting) else weightings.Gramian(weighting)
        self.weighting.start(len(self.tasks))
        self.backend = backend
        self.max_nonfinite = max_nonfinite
        self._index = {task: n for n, task in enumerate(self.tasks)}
        self._shared = None if shared is None else self._check_shared(shared)
        self._weights = torch.full((len(self.tasks),), 1 / len(self.tasks), dtype=torch.float64, device="cpu")
        self._counts = {"step": 0, "task_gradient_steps": 0, "skipped": 0, "nonfinite_in_a_row": 0}
        self._last: dict[str, Any] = {"losses": {}, "dots": {}, "sqnorms": {}, "sqnorm": math.nan}
        self._cycle: _Cycle | None = None
        self._replicas_checked = False
        # Not Optimizer.__init__, which would start new param_groups: this part of it sets up hooks and profiling only.
        super().__setstate__({})

    # --- one step of Algorithm 1 ----------------------------------------------------------------------------------

    @property
    def needs_task_gradients(self) -> bool:
        """Whether the next backward() forms per-task gradients; otherwise it runs one backward of the weighted loss."""
        if self._cycle is not None:
            return self._cycle.per_task
        # About to give up: look once with per-task gradients, to say which task it is.
        last_attempt = 0 < self._counts["nonfinite_in_a_row"] == self.max_nonfinite - 1
        return self._due or (last_attempt and distributed.processes() == 1)

    @property
    def _due(self) -> bool:
        period = self.weighting.period
        return period > 0 and (self._counts["step"] + 1) % period == 0

    def backward(self, losses: Losses, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """Adds ḡ = Σ w_n g_n to ``p.grad``, in place of ``loss.backward()``.

        Several calls before step() accumulate, as everywhere: losses and per-task gradients add up, and dots and norms
        are those of the sums, hence the same as of one large batch. A batch may hold any subset of the tasks; their
        weights are used as they are. To abandon what was gathered call this optimizer's zero_grad(), or set every
        ``p.grad`` to None; gradients zeroed in place by other means still count as gathered.

        Args:
            losses: {task: loss}, or a sequence of one loss per task. A loss is a scalar tensor or a callable without
                arguments that returns one; with callables only one task's graph is alive at a time, tensors may share
                a graph. A weighting with ``cross_batch`` wants, when :attr:`needs_task_gradients`, a pair of losses
                per task, from two independent halves of its batch; the loss of the task is their mean.
            scaler: the GradScaler, if one is used. Losses are passed unscaled; ``scaler.step(optimizer)`` follows.

        Raises:
            TypeError, ValueError: an unknown task, no losses, a sequence that is not one per task, a loss that is no
                scalar or has no graph, or not a pair where one is needed.
            RuntimeError: a scaler for some of the calls only; several processes with parameters that are no replicas,
                or with a weighting that needs a Gram matrix or two halves of a batch.
        """
        owners, flat = self._parse(losses)
        cycle = self._open_cycle()
        scaled = scaler is not None and scaler.is_enabled()
        if cycle.losses and scaled != (cycle.scale is not None):
            raise RuntimeError("pass the GradScaler to every backward() between two steps, or to none of them")
        if scaler is not None and scaled:
            cycle.scale = scaler.scale(torch.ones((), device=cycle.params[0].device))
        names = [f"task {self.tasks[n]!r}" for n in owners]
        several = distributed.processes() > 1
        if several:
            self._check_several(cycle)
        if cycle.per_task:
            self._check_per_task(cycle, owners)
            values, grads = gradients.task_gradients(flat, cycle.params, scale=cycle.scale, names=names)
            self._add_losses(cycle, owners, values)
            (self._combine_over_processes if several else self._combine)(cycle, owners, grads)
        else:
            weights = self._known_weights().tolist()
            shares = [weights[n] / owners.count(n) for n in owners]
            before = distributed.take_grads(cycle.params) if several else []
            values = gradients.weighted_backward(flat, shares, cycle.params, scale=cycle.scale, names=names)
            if several:
                here = distributed.take_grads(cycle.params)
                gradients.add_to_grad(cycle.params, before)
                gradients.add_to_grad(cycle.params, distributed.mean(here, cycle.params))
            self._add_losses(cycle, owners, values)
        cycle.largest = gradients.largest(cycle.params)
        self._cycle = cycle

    @torch.no_grad()
    def _combine(self, cycle: _Cycle, owners: list[int], grads: list[Gradient]) -> None:
        """Adds per-task gradients to the cycle's, and to p.grad the new combination in place of the cycle's old one."""
        if cycle.weights is not None:
            gradients.add_to_grad(cycle.params, self._combination(cycle), alpha=-1.0)
        new: dict[int, list[Gradient]] = {}
        for n in owners:
            new.setdefault(n, []).append(grads.pop(0))
        for n, rows in new.items():
            cycle.rows[n] = list(map(gradients.add, cycle.rows[n], rows)) if n in cycle.rows else rows
        cycle.rows = dict(sorted(cycle.rows.items()))
        if self.weighting.needs_gram:
            self._weigh_by_gram(cycle)
            combined = self._combination(cycle)
        else:
            cycle.weights = self._known_weights()[list(cycle.rows)]
            form = gradients.combine_across if self.weighting.cross_batch else gradients.combine
            combined, dots, sqnorms = form(cycle.all_rows(), cycle.weights, cycle.shared, backend=self.backend)
            cycle.dots, cycle.sqnorms = dots / cycle.square(), sqnorms / cycle.square()
        gradients.add_to_grad(cycle.params, combined)

    @torch.no_grad()
    def _combine_over_processes(self, cycle: _Cycle, owners: list[int], grads: list[Gradient]) -> None:
        """As :meth:`_combine`, with weights known before: each call's own gradients are combined and averaged."""
        weights = self._known_weights()
        part: Gradient = [None] * len(cycle.params)
        if grads:
            part = ops.combine(grads, weights[owners], backend=self.backend)
        part = distributed.mean(part, cycle.params)
        for n, row in zip(owners, grads, strict=True):
            cycle.rows[n] = [gradients.add(cycle.rows[n][0], row)] if n in cycle.rows else [row]
        cycle.rows = dict(sorted(cycle.rows.items()))
        cycle.combined = part if cycle.combined is None else gradients.add(cycle.combined, part)
        gradients.add_to_grad(cycle.params, part)  # may become p.grad itself: the sum above comes first
        if cycle.rows:
            rows = [row[: cycle.shared] for row in cycle.all_rows()]
            dots = ops.dots(rows, cycle.combined[: cycle.shared], backend=self.backend)
            cycle.dots = dots / cycle.square()

    def _combination(self, cycle: _Cycle) -> Gradient:
        assert cycle.weights is not None
        rows = cycle.all_rows()
        halves = len(rows) // len(cycle.weights)
        return ops.combine(rows, cycle.weights.repeat_interleave(halves) / halves, backend=self.backend)

    def _weigh_by_gram(self, cycle: _Cycle) -> None:
        gram = ops.gram([row[: cycle.shared] for row in cycle.all_rows()], backend=self.backend) / cycle.square()
        losses = torch.stack(list(cycle.losses.values()))
        host = torch.cat([gram, losses.to(gram.device)[None]]).cpu()
        gram, losses = host[:-1], host[-1]
        if cycle.restore is None:
            cycle.restore = self.weighting.state_dict()
        else:
            self.weighting.load_state_dict(cycle.restore)
        if torch.isfinite(gram).all():
            weights = self.weighting.weights_from_gram(gram, losses).detach().to("cpu", torch.float64)
            if weights.shape != losses.shape:
                raise ValueError(
                    f"the weighting returned weights of shape {tuple(weights.shape)} for {len(losses)} tasks"
                )
        else:  # the step will be skipped, and few solvers survive this
            weights = torch.ones_like(losses)
        cycle.weights, cycle.dots, cycle.sqnorms = weights, gram @ weights, gram.diagonal()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """θ by the base optimizer; then, where per-task gradients were due, the weighting's own update.

        Args:
            closure: clears the gradients, calls :meth:`backward` and returns whatever step() should return. It is
                called once.

        Raises:
            RuntimeError: no backward() since the last step; gradients scaled by hand instead of ``backward(scaler=)``.
            NonFiniteError: ``max_nonfinite`` steps in a row with a non-finite loss or gradient.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        try:
            self._step()
        except BaseException:
            # GradScaler deletes these only after a step() that returns, and multiplies with what it finds.
            self.__dict__.pop("grad_scale", None)
            self.__dict__.pop("found_inf", None)
            raise
        return result

    def _step(self) -> None:
        if self._cycle is None:
            raise RuntimeError("step() before backward(): call optimizer.backward(losses) first")
        cycle, due = self._cycle, self._due
        finite, losses, dots, sqnorms = self._read(cycle)
        tasks = list(cycle.losses)
        cycle.rows.clear()  # K gradients that the base optimizer's step needs no more
        cycle.combined = None
        if not finite:
            self._skip(cycle)
            return
        self._cycle = None
        grad_scale = getattr(self, "grad_scale", None)  # None also if scaler.unscale_() was called
        if grad_scale is not None:
            gradients.unscale(cycle.params, grad_scale)
        self.base.step()
        self._counts["step"] += 1
        self._counts["nonfinite_in_a_row"] = 0
        if cycle.per_task:
            self._counts["task_gradient_steps"] += 1
            if self.weighting.needs_gram and cycle.weights is not None:
                self._weights[tasks] = cycle.weights
            if due:
                self.weighting.update(losses, dots, sqnorms, tasks)

    def _read(self, cycle: _Cycle) -> tuple[bool, Tensor, Tensor, Tensor]:
        """Whether all is finite, and losses, dots and sqnorms, (K,) or empty, on the host: the one host sync."""
        found_inf = getattr(self, "found_inf", None)
        if (found_inf is None) != (cycle.scale is None):
            raise RuntimeError(
                "with a GradScaler call optimizer.backward(losses, scaler=scaler), losses unscaled, "
                "and then scaler.step(optimizer)"
            )
        assert cycle.largest is not None
        verdict = cycle.largest if found_inf is None else torch.where(found_inf > 0, math.inf, cycle.largest)
        if distributed.processes() > 1:
            return self._read_over_processes(cycle, verdict.to(cycle.params[0].device))
        nothing = verdict.new_empty(0)
        parts = [
            torch.stack(list(cycle.losses.values())),
            nothing if cycle.dots is None else cycle.dots,
            nothing if cycle.sqnorms is None else cycle.sqnorms,
            verdict.reshape(1),
        ]
        host = torch.cat([t.to(verdict.device, torch.float64, non_blocking=True) for t in parts]).cpu()
        losses, dots, sqnorms, _ = host.split([len(t) for t in parts])
        self._last["losses"] = self._named(cycle.losses, losses)
        if cycle.weights is not None:
            self._last["dots"] = self._named(cycle.losses, dots)
            self._last["sqnorms"] = self._named(cycle.losses, sqnorms)
            self._last["sqnorm"] = (cycle.weights @ dots).item()
        return bool(torch.isfinite(host).all()), losses, dots, sqnorms

    def _read_over_processes(self, cycle: _Cycle, verdict: Tensor) -> tuple[bool, Tensor, Tensor, Tensor]:
        """As :meth:`_read`, of the losses and dots averaged over the processes; from now on the cycle has all tasks.

        A task's squared norm would take an all-reduce of its gradient: it is nan.
        """
        local = torch.zeros(3, len(self.tasks) + 1, dtype=torch.float64, device=verdict.device)
        here = list(cycle.losses)
        if here:
            local[0, here] = torch.stack(list(cycle.losses.values())).to(local.device)
            if cycle.dots is not None:
                local[1, here] = cycle.dots.to(local.device)
            local[2, here] = 1.0
        local[0, -1] = verdict
        host = distributed.total(local).cpu()
        tasks = host[2].nonzero()[:, 0].tolist()
        if not tasks:
            raise ValueError("backward() needs the loss of at least one task, from one process at least")
        losses, dots = host[:2, tasks] / distributed.processes()
        sqnorms = torch.full_like(dots, math.nan)
        cycle.losses = dict(zip(tasks, losses, strict=True))
        self._last["losses"] = self._named(tasks, losses)
        if cycle.per_task:
            self._last["dots"], self._last["sqnorms"] = self._named(tasks, dots), self._named(tasks, sqnorms)
            self._last["sqnorm"] = (self._known_weights()[tasks] @ dots).item()
        return bool(torch.isfinite(host).all()), losses, dots, sqnorms

    def _skip(self, cycle: _Cycle) -> None:
        self._discard()
        self._counts["skipped"] += 1
        self._counts["nonfinite_in_a_row"] += 1
        if self._counts["nonfinite_in_a_row"] >= self.max_nonfinite:
            seen = [self.tasks[n] for n in cycle.losses]
            seen_by = "losses" if cycle.weights is None else "sqnorms"
            bad = [t for t in seen if not math.isfinite(self._last["losses"][t] + self._last[seen_by][t])]
            where = "of task " + ", ".join(map(repr, bad)) if bad else f"of the combination of tasks {seen}"
            raise NonFiniteError(
                f"{self._counts['nonfinite_in_a_row']} steps in a row had a non-finite loss or gradient, "
                f"the last one {where}; losses: {self._last['losses']}"
            )

    # --- what is read from it -------------------------------------------------------------------------------------

    @property
    def alpha(self) -> dict[Task, float]:
        """The weight of every task (for weightings that need the Gram matrix: the one last used)."""
        return self._named(range(len(self.tasks)), self._known_weights())

    @property
    def multipliers(self) -> dict[str, float]:
        """The weighting's multipliers by name; one with an entry per task is spelled ``lambda_n[az]``."""
        named: dict[str, float] = {}
        for name, value in self.weighting.multipliers.items():
            if isinstance(value, Tensor):
                named |= {f"{name}[{task}]": v for task, v in zip(self.tasks, value.tolist(), strict=True)}
            else:
                named[name] = value
        return named

    @property
    def statistics(self) -> dict[str, Any]:
        """Counters and the last numbers seen; reading them costs no host sync.

        ``step``, ``task_gradient_steps``: steps taken, and how many of them with per-task gradients. ``skipped``,
        ``nonfinite_in_a_row``: steps not taken. ``losses`` {task: L_n} of the last step. ``dots`` {task: <g_n, ḡ>},
        ``sqnorms`` {task: ‖g_n‖²} (nan with several processes) and ``sqnorm`` = Σ w_n <g_n, ḡ> (that is ‖ḡ‖² over the
        shared parameters, or its cross-batch estimate) of the last step with per-task gradients. Gradients are unscaled
        and unclipped.
        """
        return {**self._counts, **{k: dict(v) if isinstance(v, dict) else v for k, v in self._last.items()}}

    # --- torch.optim.Optimizer --------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and with them what backward() calls since the last step() have gathered."""
        self.base.zero_grad(set_to_none)
        self._discard()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state_dict with one more entry, ``"multitask"``: weights, multipliers and counters.

        Gradients are not part of it: take it after step(), not between backward() and step().
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = self.base.state_dict()
        state["multitask"] = {
            "tasks": list(self.tasks),
            "weighting": self.weighting.state_dict(),
            "weights": self._weights.clone(),
            "counts": dict(self._counts),
            "last": {k: dict(v) if isinstance(v, dict) else v for k, v in self._last.items()},
        }
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state = post_hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what state_dict() returned, for the same tasks.

        Raises:
            ValueError: it is a plain optimizer's (load that into ``.base``), or one for other tasks.
        """
        state = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state = pre_hook(self, state) or state
        if "multitask" not in state:
            raise ValueError("state_dict has no 'multitask' entry: load a plain optimizer's state into .base")
        own = state.pop("multitask")
        if tuple(own["tasks"]) != self.tasks:
            raise ValueError(f"state_dict is for tasks {list(own['tasks'])}, this optimizer has {list(self.tasks)}")
        before = self.weighting.state_dict()
        self.weighting.load_state_dict(own["weighting"])
        try:
            self.base.load_state_dict(state)
        except BaseException:  # all of it is loaded or nothing
            self.weighting.load_state_dict(before)
            raise
        self._weights = own["weights"].clone()
        self._counts = dict(own["counts"])
        self._last = {k: dict(v) if isinstance(v, dict) else v for k, v in own["last"].items()}
        self._cycle = None
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, hooks (and the step() that a scheduler wrapped) are not copied or pickled; nor is p.grad and what
        # belongs to it.
        kept = {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}
        return kept | {"_cycle": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.tasks)}, {type(self.weighting).__name__}) over {self.base!r}"

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _open_cycle(self) -> _Cycle:
        if self._cycle is not None and any(p.grad is not None for p in self._cycle.params):
            return self._cycle
        self._discard()  # if there was one, its gradients were set to None elsewhere
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not params:
            raise ValueError("no parameter of the optimizer requires grad")
        shared, private = params, []
        if self._shared is not None:
            ids = {id(p) for p in self._shared}
            shared, private = [p for p in params if id(p) in ids], [p for p in params if id(p) not in ids]
        return _Cycle([*shared, *private], len(shared), self.needs_task_gradients)

    def _discard(self) -> None:
        if self._cycle is not None and self._cycle.restore is not None:
            self.weighting.load_state_dict(self._cycle.restore)
        self._cycle = None

    def _known_weights(self) -> Tensor:
        return self._weights if self.weighting.needs_gram else self.weighting.weights()

    def _named(self, tasks: Iterable[int], values: Tensor) -> dict[Task, float]:
        return {self.tasks[n]: v for n, v in zip(tasks, values.tolist(), strict=True)}

    def _add_losses(self, cycle: _Cycle, owners: list[int], values: list[Tensor]) -> None:
        for n, value in zip(owners, values, strict=True):
            value = value.to(cycle.params[0].device) / owners.count(n)
            cycle.losses[n] = cycle.losses[n] + value if n in cycle.losses else value
        cycle.losses = dict(sorted(cycle.losses.items()))

    def _parse(self, losses: Losses) -> tuple[list[int], list[Loss]]:
        """Every single loss, and beside it the index of the task it belongs to."""
        if isinstance(losses, Mapping):
            for task in losses:
                if task not in self._index:
                    raise ValueError(f"unknown task {task!r}; the tasks are {list(self.tasks)}")
            items = [(self._index[task], loss) for task, loss in losses.items()]
        elif isinstance(losses, Sequence):
            if len(losses) != len(self.tasks):
                raise ValueError(
                    f"{len(losses)} losses for {len(self.tasks)} tasks; name them, {{task: loss}}, if tasks are absent"
                )
            items = list(enumerate(losses))
        else:
            raise TypeError(f"losses must be {{task: loss}} or a sequence of losses, got {_describe(losses)}")
        if not items and distributed.processes() == 1:
            raise ValueError("backward() needs the loss of at least one task")
        owners, flat = [], []
        for n, loss in items:
            halves = list(loss) if isinstance(loss, tuple | list) else [loss]
            if isinstance(loss, tuple | list) and not (self.weighting.cross_batch and len(halves) == 2):
                raise ValueError(
                    f"loss of task {self.tasks[n]!r}: expected a single loss"
                    + (" or a pair" if self.weighting.cross_batch else "")
                    + f", got {len(halves)} of them"
                )
            owners += [n] * len(halves)
            flat += halves
        return owners, flat

    def _check_several(self, cycle: _Cycle) -> None:
        if self.weighting.needs_gram or self.weighting.cross_batch:
            what = "cross_batch" if self.weighting.cross_batch else "a weighting that needs the Gram matrix"
            raise RuntimeError(f"{what} is not supported with several processes")
        if not self._replicas_checked:
            distributed.check_replicas(cycle.params)
            self._replicas_checked = True

    def _check_per_task(self, cycle: _Cycle, owners: list[int]) -> None:
        if cycle.shared == 0:
            raise ValueError("no shared parameter requires grad")
        if self.weighting.cross_batch:
            for n in owners:
                if owners.count(n) != 2:
                    raise ValueError(
                        f"loss of task {self.tasks[n]!r}: this step needs a pair of losses from two independent halves "
                        "of its batch (cross_batch, needs_task_gradients)"
                    )

    def _check_shared(self, shared: Iterable[Tensor]) -> list[Tensor]:
        if isinstance(shared, Tensor):
            raise TypeError("shared must be an iterable of parameters, got a tensor")
        params = list(shared)
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for i, p in enumerate(params):
            if id(p) not in known:
                raise ValueError(f"shared[{i}] ({_describe(p)}) is not a parameter of the optimizer")
        if not params:
            raise ValueError("shared is empty: at least one parameter must be shared")
        return params


class CATS(MultiTask):
    """Curvature Aware Task Scaling (Li & Gong, NeurIPS 2021, arXiv 2104.07639, Algorithm 1) over any torch optimizer.

    :class:`MultiTask` with the weighting :class:`cats.weighting.CATS`: θ moves with Σ α_n g_n at every step, and at
    every ``inner_steps``-th step α then descends and λ ascends on Eq. 4,

        L(θ, α, λ) = Σ α_n L_n − λ_c(ε − ‖Σ α_n g_n‖²) + λ_s(Σ α_n − 1)² − Σ λ_n(α_n − ε),

    with the gradients that this step moved θ with. The other steps cost one backward pass of the weighted loss::

        optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=5e-4), tasks=["az", "be"])
        for batches in loader:
            optimizer.zero_grad()
            optimizer.backward({task: functools.partial(loss, batch) for task, batch in batches.items()})
            optimizer.step()

    The paper fixes Algorithm 1 and Eq. 4, α = 1 and λ = 0 at the start; its text leaves every value below open.

    Args:
        optimizer, tasks, shared, engine, backend, max_nonfinite: as in :class:`MultiTask`.
        inner_steps: m, how many steps of θ per step of α. The paper has m without a value.
        alpha_lr: learning rate of α (of the logits a when ``simplex="softmax"``). Not in the paper's text.
        multiplier_lr: learning rate of the multipliers. Not in the paper's text.
        epsilon: ε, the norm constraint's bound, and the least α_n of the Lagrangian form. No value in the paper's text.
        simplex: how Σ α_n = 1, α_n ≥ 0 is kept. "lagrangian" is the paper's: Eq. 4 as it stands, multipliers λ_c, λ_s,
            λ_n, starting at α_n = 1 (so Σ α_n = K at first), multipliers and α clipped at 0, which the paper leaves
            open. "softmax": α = softmax(a) from a = 0, so that Σ α_n = 1 always, with λ_c alone and steps scaled by
            1 / (1 + 2 λ_c). The defaults of both learning rates are for this form; the Lagrangian form, whose steps are
            not scaled, wants them small (1e-2 and below): at 1 it can clip every α_n to 0 at once.
        loss_term: whether Σ α_n L_n, part of Eq. 4, moves α (towards the tasks of lowest loss). Which gradient the
            authors took is not in the paper's text. Without it the softmax form converges to the min-norm point.
        cross_batch: False is the paper's: ‖Σ α_n g_n‖² of the batch, sampling noise included. True estimates the norm
            of the mean gradient from two independent halves of each task's batch,
            v_n = ½(<g_n^A, ḡ^B> + <g_n^B, ḡ^A>): backward() wants a pair of losses per task when
            :attr:`needs_task_gradients`, and 2K gradients are held.

    Attributes:
        multipliers: ``lambda_c``; in the Lagrangian form also ``lambda_s`` and ``lambda_n[task]``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: int | Iterable[Task],
        *,
        inner_steps: int = defaults.INNER_STEPS,
        alpha_lr: float = defaults.ALPHA_LR,
        multiplier_lr: float = defaults.MULTIPLIER_LR,
        epsilon: float = defaults.EPSILON,
        simplex: defaults.Simplex = defaults.SIMPLEX,
        loss_term: bool = defaults.LOSS_TERM,
        cross_batch: bool = defaults.CROSS_BATCH,
        shared: Iterable[Tensor] | None = None,
        engine: str = "auto",
        backend: str | None = None,
        max_nonfinite: int = 20,
    ) -> None:
        weighting = weightings.CATS(
            inner_steps=inner_steps,
            alpha_lr=alpha_lr,
            multiplier_lr=multiplier_lr,
            epsilon=epsilon,
            simplex=simplex,
            loss_term=loss_term,
            cross_batch=cross_batch,
        )
        super().__init__(
            optimizer, tasks, weighting, shared=shared, engine=engine, backend=backend, max_nonfinite=max_nonfinite
        )


def _task_names(tasks: int | Iterable[Task]) -> tuple[Task, ...]:
    if isinstance(tasks, int) and not isinstance(tasks, bool) and tasks > 0:
        return tuple(range(tasks))
    if isinstance(tasks, int | str) or not isinstance(tasks, Iterable):
        raise TypeError(f"tasks must be a positive number or names, got {tasks!r}")
    names = tuple(tasks)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(f"a task's name must be a str or an int, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"task {name!r} is named twice")
    if not names:
        raise ValueError("tasks is empty: at least one task is needed")
    return names


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
