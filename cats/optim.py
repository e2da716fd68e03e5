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
from .parameters import shared_parameters, trainable_parameters
from .tasks import Losses, Task, describe, split_losses, task_names
from .weighting import Weighting
from .weighting import cats as defaults


class NonFiniteError(RuntimeError):
    """Too many consecutive steps had a non-finite loss or gradient. The message names the tasks."""


def _of_base(name: str) -> Any:
    """A property that reads and writes an attribute of the base optimizer."""
    return property(lambda self: getattr(self.base, name), lambda self, value: setattr(self.base, name, value))


def _copy_of(numbers: dict[str, Any]) -> dict[str, Any]:
    """A copy of a dict of numbers and of dicts of numbers. copy.deepcopy would take 30 times as long."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in numbers.items()}


class MultiTask(Optimizer):
    """Any torch optimizer, stepped with a weighted sum of per-task gradients.

    In each step, K of the N tasks take part. Task n has the loss L_n, the gradient g_n and the weight w_n. The base
    optimizer steps with ḡ = Σ w_n g_n; then the weighting may change the weights::

        optimizer = cats.MultiTask(torch.optim.AdamW(model.parameters()), ["az", "be"], cats.weighting.Static([1, 2]))
        optimizer.zero_grad()
        optimizer.backward({"az": loss_az, "be": loss_be})  # instead of loss.backward()
        optimizer.step()

    This is a ``torch.optim.Optimizer``. ``param_groups``, ``state`` and ``defaults`` are those of the base optimizer.
    So learning-rate schedulers, hooks, ``zero_grad``, ``add_param_group`` and checkpoints work as usual.

    Args:
        optimizer: the base optimizer. Its ``step()`` must work without a closure, so LBFGS is refused.
        tasks: the names of the tasks, each a str or an int; or the number of tasks, which are then named 0, 1, ...
        weighting: a :class:`cats.weighting.Weighting`, or a callable that maps a (K, K) Gram matrix to K weights, such
            as a TorchJD ``Weighting``. It holds state, so every optimizer needs its own.
        shared: the parameters whose gradients enter dots, norms and the Gram matrix. By default, all. The other
            parameters (heads, language-specific layers) receive Σ w_n g_n too, but do not enter these numbers.
            Parameters added later are shared only if ``shared`` is None.
        engine: how gradients are formed. Only "auto" exists. It keeps the K gradients in memory and reads them once, or
            twice for weightings that need the Gram matrix.
        backend: the backend of :mod:`cats.ops` to use. None chooses one.
        max_nonfinite: raise after this many consecutive steps with a non-finite loss or gradient. Until then such a
            step is skipped: parameters, base optimizer, weights and multipliers stay as they are, and
            :attr:`statistics` counts it. With one process, the last attempt forms per-task gradients, so that the error
            names the task.

    Several processes: if ``torch.distributed`` is initialised, each process passes the losses of its own batch, and all
    take the same step, for the mean of their losses. If the batches differ in size, the loss that a process passes
    should be: its sum of losses / the number of elements in all processes * the number of processes. The rules are:

    * Do not wrap the model in DistributedDataParallel.
    * Every process must call backward() equally often. One without examples calls ``backward({})``.
    * Weightings that need the Gram matrix are refused, and so is ``cross_batch``: they would need more than one
      all-reduce of gradients per call. For the same reason ‖g_n‖² is nan.
    * backward() waits for the device. Gradients that other code wrote to ``p.grad`` are not averaged.

    Only parameters of the base optimizer receive gradients. Steps that form per-task gradients write to ``p.grad``
    directly, so post-accumulate-grad hooks do not run. step() has one host sync: it reads losses, dots, norms and
    whether all are finite. Weightings that need the Gram matrix have another one in each backward().

    Raises:
        TypeError, ValueError: an argument is not as described above.
        RuntimeError: ``backend`` cannot be used here.
    """

    # Tells GradScaler that step() unscales and skips. step() reads whether all is finite anyway, so this saves a sync.
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
            usable = ops.backends()  # the first step that forms per-task gradients may come late: check now
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
        self._shared = None if shared is None else shared_parameters(shared, self.param_groups)
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
        """Adds ḡ = Σ w_n g_n to ``p.grad``. Call it instead of ``loss.backward()``.

        Several calls before step() accumulate, as usual: losses and per-task gradients add up, and dots and norms are
        those of the sums. So they are the same as for one large batch. A batch may have any subset of the tasks; their
        weights are not renormalised. To discard the gradients so far, call this optimizer's zero_grad() or set every
        ``p.grad`` to None. Zeroing ``p.grad`` in place by other means does not discard them.

        Args:
            losses: {task: loss}, or a sequence of N losses. A loss is a floating-point scalar tensor with a graph, or a
                callable without arguments that returns one. With callables only one task's graph is in memory at a
                time. Tensors may share a graph. If the weighting is ``cross_batch`` and :attr:`needs_task_gradients`
                is true, each task needs a pair of losses, of two independent halves of its batch. The loss of the task
                is then their mean.
            scaler: the GradScaler, if you use one. Pass unscaled losses, then call ``scaler.step(optimizer)``.

        Raises:
            TypeError, ValueError: a task is unknown, there are no losses, a sequence does not have N losses, a loss is
                not a scalar or has no graph, or a pair is missing.
            RuntimeError: only some calls before a step have a scaler. With several processes: the parameters are not
                replicas, or the weighting needs a Gram matrix or is ``cross_batch``.
        """
        tasks, single = split_losses(losses, self.tasks, pairs=self.weighting.cross_batch)
        gathered = self._open_accumulation()
        gathered.check(tasks, scaler)
        weights = self._known_weights()
        if gathered.per_task:  # g_n = ∇L_n and ḡ = Σ α_n g_n, and for the update of α: <g_n, ḡ>
            gathered.add_per_task(tasks, single, weights)
        else:  # ḡ = ∇ Σ α_n L_n
            gathered.add_weighted(tasks, single, weights)
        self._accumulation = gathered

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps the base optimizer, then updates the weighting if its per-task gradients were due.

        Args:
            closure: clears the gradients, calls :meth:`backward` and returns what step() should return. It is called
                once.

        Raises:
            RuntimeError: backward() was not called since the last step, or gradients were scaled by other means than
                ``backward(scaler=)``.
            NonFiniteError: this was the ``max_nonfinite``-th consecutive step with a non-finite loss or gradient.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        try:
            self._step()
        except BaseException:
            # GradScaler deletes these only if step() returns. If they stayed, its next call would multiply with them.
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
        self.base.step()  # θ moves along ḡ
        self._counts["step"] += 1
        self._counts["nonfinite_in_a_row"] = 0
        if gathered.per_task:
            self._counts["task_gradient_steps"] += 1
            if self.weighting.needs_gram and gathered.weights is not None:
                self._weights = gathered.weights
            if due:  # α descends and λ ascends on Eq. 4
                self.weighting.update(seen.losses, seen.dots, seen.sqnorms, seen.tasks)

    def _statistics(self, gathered: Accumulation) -> Statistics:
        """The numbers of this step, on the host and in :attr:`statistics`. This is the only host sync."""
        found_inf = getattr(self, "found_inf", None)
        if (found_inf is None) != (gathered.scale is None):
            raise RuntimeError(
                "with a GradScaler call optimizer.backward(losses, scaler=scaler), losses unscaled, "
                "and then scaler.step(optimizer)"
            )
        seen = gathered.statistics(found_inf)
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

    # --- weights and statistics -------------------------------------------------------------------------------------

    @property
    def alpha(self) -> dict[Task, float]:
        """{task: weight} of all tasks. Weightings that need the Gram matrix: the weights used last."""
        return self._named(range(len(self.tasks)), self._known_weights())

    @property
    def multipliers(self) -> dict[str, float]:
        """{name: value} of the weighting's multipliers. A multiplier per task is named like ``lambda_n[az]``."""
        named: dict[str, float] = {}
        for name, value in self.weighting.multipliers.items():
            if isinstance(value, Tensor):
                named |= {f"{name}[{task}]": v for task, v in zip(self.tasks, value.tolist(), strict=True)}
            else:
                named[name] = value
        return named

    @property
    def statistics(self) -> dict[str, Any]:
        """Counters, and the numbers of the last steps. Reading them causes no host sync.

        * ``step``: steps taken. ``task_gradient_steps``: how many of them formed per-task gradients.
        * ``skipped``: steps not taken because a loss or gradient was not finite. ``nonfinite_in_a_row``: how many of
          them came since the last step taken.
        * ``losses``: {task: L_n} of the last step.
        * ``dots``: {task: <g_n, ḡ>}, ``sqnorms``: {task: ‖g_n‖²} and ``sqnorm``: Σ w_n <g_n, ḡ> of the last step with
          per-task gradients, over the shared parameters. ``sqnorm`` is ‖ḡ‖², or its estimate if ``cross_batch``.
          ``sqnorms`` are nan with several processes. All are of unscaled and unclipped gradients.
        """
        return {**self._counts, **_copy_of(self._last)}

    # --- torch.optim.Optimizer --------------------------------------------------------------------------------------

    param_groups = _of_base("param_groups")
    state = _of_base("state")
    defaults = _of_base("defaults")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and what the backward() calls since the last step() have gathered."""
        self.base.zero_grad(set_to_none)
        self._discard()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state_dict, plus an entry ``"multitask"`` with weights, multipliers and counters.

        It holds no gradients, so call it after step(), not between backward() and step().
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = self.base.state_dict()
        state["multitask"] = {
            "tasks": list(self.tasks),
            "weighting": self.weighting.state_dict(),
            "weights": self._weights.clone(),
            "counts": dict(self._counts),
            "last": _copy_of(self._last),
        }
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state = post_hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned for the same tasks. If it raises, nothing has changed.

        Raises:
            ValueError: it is the state of a plain optimizer (load that into ``.base``), or of other tasks, or it does
                not fit the weighting or the base optimizer.
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
        except BaseException:  # all of the state is loaded, or none
            self.weighting.load_state_dict(before)
            raise
        self._weights = own["weights"].clone()
        self._counts = dict(own["counts"])
        self._last = _copy_of(own["last"])
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
        """What the backward() calls since the last step() have gathered, or a new one if there were none."""
        if self._accumulation is not None and any(p.grad is not None for p in self._accumulation.params):
            return self._accumulation
        self._discard()  # other code may have set all its gradients to None
        self._reducer = distributed.reducer(self._reducer)
        return Accumulation(
            *trainable_parameters(self.param_groups, self._shared),
            self.tasks,
            weighting=self.weighting,
            reducer=self._reducer,
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


class CATS(MultiTask):
    """Curvature Aware Task Scaling over any torch optimizer.

    Algorithm 1 of Li & Gong, "Robust Optimization for Multilingual Translation with Imbalanced Data", NeurIPS 2021,
    arXiv 2104.07639. It is :class:`MultiTask` with the weighting :class:`cats.weighting.CATS`. Every step moves the
    parameters θ along ḡ = Σ α_n g_n. Every ``inner_steps``-th step then moves the weights α and the multipliers λ: α
    descends and λ ascends on Eq. 4,

        L(θ, α, λ) = Σ α_n L_n − λ_c(ε − ‖Σ α_n g_n‖²) + λ_s(Σ α_n − 1)² − Σ λ_n(α_n − ε),

    for the same losses L_n and gradients g_n. The other steps cost one backward pass of the weighted loss::

        optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=5e-4), tasks=["az", "be"])
        for batches in loader:
            optimizer.zero_grad()
            optimizer.backward({task: functools.partial(loss, batch) for task, batch in batches.items()})
            optimizer.step()

    The text of the paper gives Algorithm 1, Eq. 4 and the start α = 1, λ = 0. It gives no value for any setting below.

    Args:
        optimizer, tasks, shared, engine, backend, max_nonfinite: as in :class:`MultiTask`.
        inner_steps: m, the number of steps of θ per step of α.
        alpha_lr: the learning rate of α, or of the logits a if ``simplex="softmax"``.
        multiplier_lr: the learning rate of the multipliers.
        epsilon: ε, the bound on ‖Σ α_n g_n‖². In the Lagrangian form also the bound in the constraint α_n ≥ ε.
        simplex: how Σ α_n = 1 and α_n ≥ 0 are kept.
            "lagrangian" is Eq. 4 as written, with the multipliers λ_c, λ_s and λ_n. It starts at α_n = 1, so Σ α_n = N
            at first. α and the multipliers are clipped at 0; the paper does not say how.
            "softmax" sets α = softmax(a), starting at a = 0, so Σ α_n = 1 always. It has λ_c only, and divides the
            gradient of a by 1 + 2 λ_c.
            The default learning rates are for "softmax". The gradient of "lagrangian" is not divided by anything, so it
            needs small ones, 1e-2 or less: at 1 a single step can clip every α_n to 0.
        loss_term: whether the term Σ α_n L_n of Eq. 4 moves α. It moves weight to the tasks with the lowest loss. The
            text of the paper does not say whether the authors used it. Without it "softmax" converges to the min-norm
            point.
        cross_batch: whether to estimate ‖Σ α_n g_n‖² from two independent halves A, B of each task's batch:
            v_n = ½(<g_n^A, ḡ^B> + <g_n^B, ḡ^A>). This estimates the norm of the mean gradient, without sampling noise;
            False, as in the paper, includes the noise. If True, backward() needs a pair of losses per task whenever
            :attr:`needs_task_gradients` is true, and 2K gradients are in memory.

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
