"""The optimizer: per-task losses in, one step of any torch optimizer out, and the task weights move along."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import distributed, ops
from . import weighting as weightings
from .accumulate import Accumulation
from .distributed import Reducer, Statistics
from .gradients import unscale
from .tasks import Losses, Task, describe, split_losses, task_names
from .weighting import Weighting
from .weighting import cats as defaults


class NonFiniteError(RuntimeError):
    """Too many consecutive steps had a non-finite loss or gradient. The message names the tasks."""


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
    _accumulation: Accumulation | None = None  # None between step() and the next backward()
    _reducer: Reducer | None = None

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
            raise TypeError(f"optimizer must be a torch.optim.Optimizer instance, got {describe(optimizer)}")
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
        self.tasks = task_names(tasks)
        self.weighting = weighting if isinstance(weighting, Weighting) else weightings.Gramian(weighting)
        self.weighting.start(len(self.tasks))
        self.backend = backend
        self.max_nonfinite = max_nonfinite
        self._shared = None if shared is None else self._check_shared(shared)
        self._weights = torch.full((len(self.tasks),), 1 / len(self.tasks), dtype=torch.float64, device="cpu")
        self._counts = {"step": 0, "task_gradient_steps": 0, "skipped": 0, "nonfinite_in_a_row": 0}
        self._last: dict[str, Any] = {"losses": {}, "dots": {}, "sqnorms": {}, "sqnorm": math.nan}
        # Optimizer.__init__ would make new param_groups. This part of it only sets up hooks and profiling.
        super().__setstate__({})

    # --- one step of Algorithm 1 ----------------------------------------------------------------------------------

    @property
    def needs_task_gradients(self) -> bool:
        """Whether the next backward() forms per-task gradients. Otherwise it runs one backward of the weighted loss."""
        if self._accumulation is not None:
            return self._accumulation.per_task
        last_attempt = 0 < self._counts["nonfinite_in_a_row"] == self.max_nonfinite - 1
        return self._weighting_due or (last_attempt and distributed.reducer().names_nonfinite_task)

    @property
    def _weighting_due(self) -> bool:
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
        tasks, single = split_losses(losses, self.tasks, pairs=self.weighting.cross_batch)
        gathered = self._open_accumulation()
        gathered.use_scaler(scaler)
        self._reducer = distributed.reducer(self._reducer)
        self._reducer.check(tasks, gathered.params, self.weighting)
        names = [f"task {self.tasks[n]!r}" for n in tasks]
        # g_n = ∇L_n and ḡ = Σ α_n g_n, or ḡ = ∇ Σ α_n L_n at an inner step
        gathered.add(tasks, single, weights=self._known_weights(), names=names, reducer=self._reducer)
        self._accumulation = gathered

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
        gathered, due = self._accumulation, self._weighting_due
        if gathered is None:
            raise RuntimeError("step() before backward(): call optimizer.backward(losses) first")
        seen = self._statistics(gathered)
        gathered.free()
        if not seen.finite:
            self._skip(seen)
            return
        self._accumulation = None
        grad_scale = getattr(self, "grad_scale", None)  # None as well if scaler.unscale_() was called
        if grad_scale is not None:
            unscale(gathered.params, grad_scale)
        self.base.step()  # θ moves with ḡ
        self._counts["step"] += 1
        self._counts["nonfinite_in_a_row"] = 0
        if gathered.per_task:
            self._counts["task_gradient_steps"] += 1
            if self.weighting.needs_gram and gathered.weights is not None:
                self._weights = gathered.weights
            if due:
                self.weighting.update(seen.losses, seen.dots, seen.sqnorms, seen.tasks)  # α descends, λ ascends

    def _statistics(self, gathered: Accumulation) -> Statistics:
        """The numbers of this step, on the host and in :attr:`statistics`. This is the only host sync."""
        found_inf = getattr(self, "found_inf", None)
        if (found_inf is None) != (gathered.scale is None):
            raise RuntimeError(
                "with a GradScaler call optimizer.backward(losses, scaler=scaler), losses unscaled, "
                "and then scaler.step(optimizer)"
            )
        assert self._reducer is not None
        seen = gathered.statistics(self._reducer, found_inf, len(self.tasks))
        self._last["losses"] = self._named(seen.tasks, seen.losses)
        if gathered.per_task:
            assert gathered.weights is not None
            self._last["dots"] = self._named(seen.tasks, seen.dots)
            self._last["sqnorms"] = self._named(seen.tasks, seen.sqnorms)
            self._last["sqnorm"] = (gathered.weights[seen.tasks] @ seen.dots).item()
        return seen

    def _skip(self, seen: Statistics) -> None:
        self._discard()
        self._counts["skipped"] += 1
        self._counts["nonfinite_in_a_row"] += 1
        if self._counts["nonfinite_in_a_row"] >= self.max_nonfinite:
            bad = [self.tasks[n] for n in seen.nonfinite_tasks()]
            present = [self.tasks[n] for n in seen.tasks]
            where = "of task " + ", ".join(map(repr, bad)) if bad else f"of the combination of tasks {present}"
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
        self._accumulation = None
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, hooks and p.grad are not copied or pickled, nor is the step() that a scheduler wrapped. What was
        # gathered belongs to p.grad.
        left_out = ("step", "_accumulation")
        return {k: v for k, v in self.__dict__.items() if k not in left_out and not k.startswith("_optimizer_")}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.tasks)}, {type(self.weighting).__name__}) over {self.base!r}"

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _open_accumulation(self) -> Accumulation:
        """What the calls since the last step() have gathered. A new one if this is the first of them."""
        if self._accumulation is not None and any(p.grad is not None for p in self._accumulation.params):
            return self._accumulation
        self._discard()  # if there was one, other code set all its gradients to None
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not params:
            raise ValueError("no parameter of the optimizer requires grad")
        shared, private = params, []
        if self._shared is not None:
            ids = {id(p) for p in self._shared}
            shared, private = [p for p in params if id(p) in ids], [p for p in params if id(p) not in ids]
        return Accumulation(
            [*shared, *private],
            len(shared),
            weighting=self.weighting,
            per_task=self.needs_task_gradients,
            backend=self.backend,
        )

    def _discard(self) -> None:
        if self._accumulation is not None:
            self._accumulation.discard()
        self._accumulation = None

    def _known_weights(self) -> Tensor:
        """The weights of all tasks, as far as they are known before the gradients."""
        return self._weights if self.weighting.needs_gram else self.weighting.weights()

    def _named(self, tasks: Iterable[int], values: Tensor) -> dict[Task, float]:
        return {self.tasks[n]: v for n, v in zip(tasks, values.tolist(), strict=True)}

    def _check_shared(self, shared: Iterable[Tensor]) -> list[Tensor]:
        if isinstance(shared, Tensor):
            raise TypeError("shared must be an iterable of parameters, got a tensor")
        params = list(shared)
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for i, p in enumerate(params):
            if id(p) not in known:
                raise ValueError(f"shared[{i}] ({describe(p)}) is not a parameter of the optimizer")
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
