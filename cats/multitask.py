"""The optimizer cats.MultiTask takes one loss per task, and steps any torch optimizer with weighted gradients."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import distributed, ops
from . import weighting as weightings
from .accumulate import Accumulation
from .agreement import Description, describe_call, describe_settings
from .direction import check_direction, is_known, rates, remembered
from .distributed import Call, Communication, Reducer, Statistics
from .engines.choose import NAMES as ENGINES
from .engines.choose import Engines
from .engines.examples import Examples
from .engines.losses import Loss, TaskLosses
from .engines.rows import rows_forgotten
from .gradients import grads_restored_on_error, unscaled
from .ops.dispatch import choices
from .parameters import (
    check_kinds,
    groups_of_parameters,
    parameter_names,
    shared_parameters,
    trainable_parameters,
)
from .state import State, copy_of, noted_if_moved
from .state_dict import create_state, creates_state
from .tasks import Losses, Task, describe, split_examples, split_losses, task_names
from .weighting import Weighting
from .weighting.checks import check_needs
from .wrapper import Wrapper
from .wrapping import not_compiled


class NonFiniteError(RuntimeError):
    """Too many consecutive steps had a non-finite loss or gradient. The message names the tasks."""


class MultiTask(Wrapper):
    """Any torch optimizer, stepped with a weighted sum of the tasks' gradients.

    In each step, K of the N tasks take part. Task n has the loss L_n, the gradient g_n and the weight w_n. The base
    optimizer steps with ḡ = Σ w_n g_n. Then the weighting may change the weights::

        optimizer = cats.MultiTask(torch.optim.AdamW(model.parameters()), ["az", "be"], cats.weighting.Static([1, 2]))
        optimizer.zero_grad()
        optimizer.backward({"az": loss_az, "be": loss_be})  # instead of loss.backward()
        optimizer.step()

    This is a ``torch.optim.Optimizer``. ``param_groups``, ``state`` and ``defaults`` are those of the base optimizer.
    So learning-rate schedulers, hooks, ``zero_grad``, ``add_param_group`` and checkpoints work as usual. Public
    attributes that this class does not have are the base's, such as ``train()`` and ``eval()`` of a schedule-free
    optimizer. Proxies, such as that of Lightning, share all state with the optimizer. Inside ``torch.compile``,
    backward(), step() and zero_grad() are graph breaks.

    Args:
        optimizer: the base optimizer. Its ``step()`` must work without a closure, so LBFGS is refused.
        tasks: the names of the tasks in a fixed order, each a str or an int; or the number of tasks, which are then
            named 0, 1, ... A set is refused, because its order differs between processes and runs.
        weighting: a :class:`cats.weighting.Weighting`, or a callable that maps a (K, K) Gram matrix to K weights, such
            as a TorchJD ``Weighting`` or ``Aggregator``; see :class:`cats.weighting.Gramian`, also for its
            ``tolerance``, which matters under autocast. It holds state, so every optimizer needs its own.
        shared: the parameters from which the weighting's numbers are computed: the inner products and norms of the
            gradients, or their Gram matrix. By default, all parameters. The other parameters (task heads,
            language-specific layers) receive Σ w_n g_n too. Parameters that are added later with add_param_group() are
            shared only if ``shared`` is None.
        engine: how the numbers <g_n, ḡ> are computed at the steps that update the weighting. All engines are exact;
            :mod:`cats.engines` says what each needs. :attr:`statistics` says which one was used, and why.

            * "per_task": one backward pass per task, with K gradients in memory. It knows ‖g_n‖² and the Gram matrix
              too.
            * "one_pass": one backward pass, and one more matrix product per Linear layer, for any number of tasks. It
              needs to know the task of each row: pass ``tasks`` to :meth:`backward`. It does not know ‖g_n‖².
            * "two_pass": one backward pass for ḡ, then one task's gradient after the other. One at a time is in memory.
            * "forward_mode": one backward pass for ḡ, then one forward pass with the derivatives along ḡ, for any
              number of tasks. Losses must be callables. It does not know ‖g_n‖².
            * "auto": "one_pass" with ``tasks``, if the model allows it. Otherwise "per_task", or with one process
              "two_pass" if K gradients would take more than half of the free memory.
        rows: with "one_pass", the share of the rows of each task from which <g_n, ḡ> is estimated in most layers,
            without bias; ḡ stays exact. None: all.
        model: the module whose parameters are optimized. It gives them names in error messages. When "two_pass" and
            "forward_mode" evaluate callables again, they restore its buffers, such as the running statistics of batch
            normalisation.
        backend: the backend of :mod:`cats.ops` to use. If None, one is chosen.
        max_nonfinite: raise after this many consecutive steps with a non-finite loss or gradient. Until then such a
            step is skipped and counted in :attr:`statistics`: parameters, base optimizer, weights and multipliers do
            not change. With one process, the last attempt computes one gradient per task, so that the error can name
            the task. With a GradScaler, skipped steps are not counted here while its scale is above 1 and all losses
            are finite: the scaler is looking for its scale.
        process_group: the processes that train together, see below. None: the default group of ``torch.distributed``.
        communication_dtype: the dtype in which replicas all-reduce gradients. None: that of the parameters.
            torch.bfloat16 halves the bytes of float32. Then the gradient of each process, and each sum of two of them
            on the way, has a relative rounding error of up to 2⁻⁸.

    Several processes: if ``torch.distributed`` is initialised, each process passes the losses of its own batch. All
    processes take the same step, for the mean of their losses. If the batches differ in size, each process passes
    ``local_sum_of_losses / global_size * world_size``, where ``global_size`` counts the examples or tokens of all
    processes. What each process holds:

    * A replica of the plain model. A step all-reduces ḡ and K numbers. Where ḡ comes from one backward pass (all
      engines but "per_task"), it is all-reduced in buckets while that pass goes on. ‖g_n‖² is nan: it would need
      the mean of g_n over the processes. Weightings that need the Gram matrix or norms, and ``cross_batch``, need
      these means. There, K reduce-scatters give each process a share of the elements of all of them, and ḡ is
      gathered from the shares. All of this is dense, so a sparse gradient becomes dense, which SparseAdam refuses.
    * Its shards of a model after ``fully_shard`` (FSDP2), also with several replicas of the shards. All processes must
      pass the losses of the same tasks in the same order. The engines are "per_task" and "two_pass".
      FullyShardedDataParallel and other DTensors are refused.
    * A replica in DistributedDataParallel. The steps that compute <g_n, ḡ> need "one_pass"; other engines are refused
      there. Each call evaluates all losses, callables too, and then runs one backward pass. Parameters that are not in
      the optimizer get gradients too, as with ``fully_shard``. If ``p.grad`` differs between the processes when step()
      is called, because it was not averaged, step() raises.

    The rules are:

    * All processes must call backward() the same number of times. A process without examples calls ``backward({})``,
      or with a wrapped model passes ``0 * model(x).sum()`` for some x.
    * Tasks and their order, settings, learning rates, weights, multipliers, counters and the parameters must be the
      same in all processes. They are compared: what may change most easily in every call; the rest and the values of
      the parameters in the first call, after load_state_dict(), and in steps 2, 4, 8, ..., 64, 100, 200, 300, ... If
      they differ, or if one process fails in backward(), or in step() before the weighting's update, all processes
      raise a RuntimeError that says why. A process that dies, or fails while a wrapped model waits for it, is noticed
      only by the timeout of ``torch.distributed``.
    * backward() has a host sync. Gradients that other code wrote to ``p.grad`` are not averaged.

    Only parameters of the base optimizer receive gradients. The engine "per_task" writes ḡ to ``p.grad`` directly, so
    post-accumulate-grad hooks do not run in its steps. A hook of a parameter (``p.register_hook``) runs on each g_n
    there; in all other steps, it runs on ḡ, or with callables on each w_n g_n. A linear hook, such as a factor, gives
    the same ḡ everywhere. One that clips does not: clip ``p.grad`` between backward() and step() instead. The engine
    "one_pass" may form the gradient of a layer's weight itself: then hooks of a view of it (``w.t()``), or of its
    ``AccumulateGrad`` node, do not run in that step. In graphs
    with functions written in Python, such as activation checkpointing with ``use_reentrant=True``, gradients come from
    a plain backward pass. Then post-accumulate-grad hooks run, and other parameters that such a function uses inside
    get gradients too. The graph of a model under ``torch.compile`` consists of such functions.

    step() has one host sync: it reads the losses, the inner products, the norms, and whether all of them are finite.
    Weightings that need the Gram matrix, or the losses before the backward pass (FAMO), have another host sync in each
    backward(). One that needs the losses again after the step has a third one.

    Raises:
        TypeError, ValueError: an argument is not as described above, or a parameter is complex.
        RuntimeError: ``backend`` cannot be used here, or a parameter is sharded in a way that is not supported.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: int | Iterable[Task],
        weighting: Weighting | Callable[[Tensor], Tensor],
        *,
        shared: Iterable[Tensor] | None = None,
        engine: str = "auto",
        rows: float | None = None,
        model: nn.Module | None = None,
        backend: str | None = None,
        max_nonfinite: int = 20,
        process_group: Any = None,
        communication_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer instance, got {describe(optimizer)}")
        if isinstance(optimizer, MultiTask):
            raise TypeError(f"optimizer is a {type(optimizer).__name__} already; pass its base optimizer")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TypeError(f"{type(optimizer).__name__} needs a closure in every step(), which is not supported")
        if engine not in ENGINES:
            raise ValueError(f"engine={engine!r} does not exist; available: {', '.join(map(repr, ENGINES))}")
        weighting = weighting if isinstance(weighting, Weighting) else weightings.Gramian(weighting)
        check_needs(weighting, engine)
        check_direction(weighting.direction, optimizer)
        if shared is not None and weighting.groups is not None:
            raise ValueError("shared= and a weighting with groups of parameters exclude each other: the groups say it")
        if rows is not None and not (isinstance(rows, float | int) and 0 < rows <= 1):
            raise ValueError(f"rows must be a share of the rows in (0, 1], such as 0.25, got {rows!r}")
        if rows is not None and engine not in ("auto", "one_pass"):
            raise ValueError(f"rows={rows} is for engine='one_pass', not {engine!r}")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
        if backend is not None:
            usable = ops.backends()  # checked now, because the first step that uses the backend may come late
            if backend not in usable:
                raise ValueError(f"there is no backend {backend!r}; the backends are {', '.join(usable)}")
            if usable[backend] is not None:
                raise RuntimeError(f"backend {backend!r} cannot be used here: {usable[backend]}")
        if isinstance(max_nonfinite, bool) or not isinstance(max_nonfinite, int) or max_nonfinite < 1:
            raise ValueError(f"max_nonfinite must be an integer of at least 1, got {max_nonfinite!r}")
        communication = Communication(process_group, communication_dtype)
        self.base = optimizer
        check_kinds(self.param_groups)
        self.tasks = task_names(tasks)
        self.weighting = weighting
        self.weighting.names = self.tasks
        self.weighting.start(len(self.tasks))
        self.backend = backend
        self.max_nonfinite = max_nonfinite
        self._communication = communication
        self._shared = None if shared is None else shared_parameters(shared, self.param_groups)
        groups_of_parameters(weighting.groups, [], self.param_groups, model)  # raises if there are no such groups
        self._engines = Engines(engine, None if rows == 1 else rows, backend, model)
        self._own = State(
            len(self.tasks), weighting.scale
        )  # after this, no method assigns to an attribute of self: see State
        # Optimizer.__init__ would make new param_groups. This part of it only sets up hooks and profiling.
        super().__setstate__({})

    # --- one step of Algorithm 1 ----------------------------------------------------------------------------------

    @property
    def needs_task_gradients(self) -> bool:
        """Whether the next backward() computes <g_n, d> of the tasks, by the engine. If not, it computes ḡ alone.

        d is ḡ, or the ``direction`` of the weighting. One that the base optimizer remembers does not exist before its
        first step.
        """
        if self._own.accumulation is not None:
            return self._own.accumulation.outer
        last_attempt = 0 < self._own.counts["nonfinite_in_a_row"] == self.max_nonfinite - 1
        due = self._due and not self.weighting.losses_only
        return due or (last_attempt and self._reducer().names_nonfinite_task)

    @property
    def _due(self) -> bool:
        """Whether the next step updates the weighting."""
        weighting = self.weighting
        due = weighting.period > 0 and (self._own.counts["step"] + 1) % weighting.period == 0
        return due and is_known(weighting.direction, self.base, self._shared)

    @not_compiled
    def backward(
        self,
        losses: Losses | Loss,
        *,
        tasks: Tensor | Sequence[Task] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        scaler: torch.amp.GradScaler | None = None,
        last: bool | None = None,
    ) -> None:
        """Adds ḡ = Σ w_n g_n to ``p.grad``. Call it instead of ``loss.backward()``.

        Several calls before step() accumulate, as in torch: the losses of a task are added, and so are its gradients.
        The inner products and norms are those of the sums, so the result is the same as for one large batch. A batch
        may have any subset of the tasks. The weights are not renormalised over the subset. To discard the gradients so
        far, call this optimizer's zero_grad() or set every ``p.grad`` to None. Other code that sets ``p.grad`` to zero
        in place does not discard them.

        If it raises, or is interrupted, ``p.grad`` and what the earlier calls accumulated are as before.

        Args:
            losses: {task: loss}, or a sequence of N losses. A loss is a floating-point scalar tensor that requires
                grad, or a callable without arguments that returns one; some engines call it more than once. With
                callables, only one task's graph is in memory at a time. Losses given as tensors may share a graph. If
                the weighting is ``cross_batch`` and :attr:`needs_task_gradients` is true, each task needs a pair of
                losses, from two independent halves of its batch. The loss of the task is then their mean.
                With ``tasks``: the losses of a mixed batch, per example or token: a tensor (B, ...), or a callable that
                returns one. This form needs one forward pass for all tasks, and the engine "one_pass" one backward
                pass.
            tasks: the task of each entry of the losses: (B,) integer, or as many of their leading dimensions as there
                are: the index of the task in the order of :attr:`tasks`, or -1 for an entry that does not count, such
                as padding. Or a sequence of B names. On a GPU, the host waits for a tensor of indices.
            reduction: with ``tasks``, whether L_n is the "mean" of the entries of task n, or their "sum".
            scaler: the GradScaler, if you use one. Pass unscaled losses, then call ``scaler.step(optimizer)``.
            last: whether this is the last call before step(). None: it is if the step before had as many calls. Engines
                with one backward pass need to know it, to free what they hold, and to compute <g_n, ḡ> with the final
                ḡ. Weightings whose weights follow from the losses (FAMO) need it, to wait for all losses. So pass it if
                the number of calls changes between steps, or if resumed training must repeat uninterrupted training bit
                for bit.

        Raises:
            TypeError, ValueError: a task is unknown, there are no losses, a sequence does not have N losses, a loss is
                not a scalar or does not require grad, or a pair is missing. ``tasks`` do not fit the losses. The
                weighting's result is not one finite weight per task. A gradient is sparse, and the weighting needs
                <g_n, ḡ> or the Gram matrix, now or later.
            RuntimeError: only some of the calls before a step have a scaler. The last step() failed and was neither
                called again nor followed by zero_grad(). With several processes: they differ, or one of them failed, or
                the model is in a wrapper that cannot be used in this step.
        """
        own, weighting = self._own, self.weighting
        with own.lock, rows_forgotten(), self._together("backward()"):
            split = self._split(losses, tasks, reduction)
            gathered, weights = self._open_accumulation(), self._known_weights()
            changes = weighting if weighting.follows else None
            with own.restored_on_error(changes), grads_restored_on_error(gathered.params):
                gathered.add(split, weights, scaler, last)  # ḡ = ∇ Σ α_n L_n, and for the update of α: <g_n, ḡ>
                own.accumulation = gathered

    @not_compiled
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps the base optimizer. Every ``weighting.period``-th step also updates the weighting.

        If a loss or gradient is not finite, the step is skipped and counted; see ``max_nonfinite``.

        If another error is raised, or the call is interrupted, then parameters, ``p.grad``, weights, multipliers and
        counters are as before, and step() may be called again. There is one exception: the base optimizer's own step()
        may fail half-way. Its parameters and its state are not copied in every step, because that would cost too much.
        The error then has a note that says that they have changed. Changes through ``.data`` are not noticed.

        Args:
            closure: clears the gradients, calls :meth:`backward` and returns what step() should return. It is called
                once.

        Raises:
            RuntimeError: backward() was not called since the last step, or a GradScaler was used in backward() or in
                step(), but not in both. Or no parameter has a gradient, because no loss depends on any of them.
            NonFiniteError: this was the ``max_nonfinite``-th consecutive step with a non-finite loss or gradient.
        """
        try:
            result = None
            if closure is not None:
                with torch.enable_grad():
                    result = closure()
            with self._own.lock:
                self._step()
        except BaseException:
            self._own.forget_scaler()
            raise
        return result

    def _step(self) -> None:
        own = self._own
        if own.accumulation is None and creates_state(self.base):
            create_state(self.base)  # torch.distributed.checkpoint wants moments to save or to load into
            return
        with self._together("step()"):
            gathered = self._gathered_gradients()
            seen = self._statistics(gathered)
        gathered.free()
        self._engines.calls_per_step = gathered.calls
        if not seen.finite:
            self._skip(gathered, seen)
            return
        due = self._due and self._has_numbers(gathered, seen)
        params, changes = gathered.params, self.weighting if due else None
        with own.restored_on_error(changes), unscaled(params, own.scale_to_undo), noted_if_moved(params, self.base):
            # α moves before θ, so that an error in its update leaves θ as it is. ḡ was formed with the α of before.
            if due:  # α descends and λ ascends on Eq. 4
                nothing = torch.full_like(seen.losses, math.nan)
                numbers = (
                    (nothing, nothing)
                    if self.weighting.losses_only
                    else (seen.dots / self._unit(gathered), seen.sqnorms)
                )
                self.weighting.update(seen.losses, *numbers, seen.tasks)
            self.base.step()  # θ moves along ḡ
            if due and self.weighting.losses_again:
                self._update_after(gathered, seen)
            self._remember(gathered, seen)
            own.count("step", *["task_gradient_steps"] * seen.known, nonfinite_in_a_row=0)
            own.accumulation = None

    def _has_numbers(self, gathered: Accumulation, seen: Statistics) -> bool:
        """Whether the numbers are known that the update of the weighting needs."""
        if self.weighting.losses_only:
            return True
        self._engines.note_numbers(known=seen.known)
        if self.weighting.needs_sqnorms and seen.known and not seen.sqnorms_known:
            raise RuntimeError(
                f"{type(self.weighting).__name__} needs the norms of the tasks' gradients, which engine "
                f"{gathered.engine} does not know with replicas or several backward() calls: use engine='per_task'"
            )
        return seen.known

    def _update_after(self, gathered: Accumulation, seen: Statistics) -> None:
        with self._together("losses after step()"):
            tasks, after = gathered.losses_after_step()
        if torch.isfinite(after).all():
            self.weighting.update_after(seen.losses, after, tasks)

    def _gathered_gradients(self) -> Accumulation:
        gathered = self._own.accumulation
        if gathered is None:
            raise RuntimeError(
                "step() before backward(): call optimizer.backward(losses) before each step(). A plain loss.backward() "
                "does not count, and zero_grad() discards what backward() left"
            )
        if all(p.grad is None for p in gathered.params):
            if not gathered.losses:
                raise RuntimeError(
                    "no process has a loss that depends on a parameter of this optimizer: at least one of them needs "
                    "the loss of at least one task in backward()"
                )
            raise RuntimeError(
                "no parameter of this optimizer has a gradient: no loss depends on any of them, or fully_shard did not "
                "average the gradients (set_requires_gradient_sync), or other code set p.grad to None after backward()"
            )
        return gathered

    def _statistics(self, gathered: Accumulation) -> Statistics:
        """The numbers of this step, on the host. This is the only host sync."""
        found_inf = getattr(self._own, "found_inf", None)
        if (found_inf is None) != (gathered.scale is None):
            raise RuntimeError(
                "with a GradScaler, call optimizer.backward(losses, scaler=scaler) with unscaled losses, "
                "and then scaler.step(optimizer)"
            )
        return gathered.statistics(found_inf)

    def _remember(self, gathered: Accumulation, seen: Statistics) -> None:
        """Keeps the numbers of this step for :attr:`statistics`, and the weights that came from its Gram matrix."""
        last: dict[str, Any] = {"losses": self._named(seen.tasks, seen.losses)}
        if seen.known:
            unit = self._unit(gathered)
            last["dots"] = self._named(seen.tasks, seen.dots / unit)
            last["sqnorms"] = self._named(seen.tasks, seen.sqnorms)
            if self._engines.name != "auto":  # a process that never had a loss has not chosen
                last |= {"engine": self._engines.name, "engine_reason": self._engines.reason}
            last["sqnorm"] = gathered.sqnorm(seen) / (unit * self.weighting.scale)
        if self.weighting.follows and seen.finite and gathered.weights is not None:
            self._own.weights = gathered.weights
        self._own.last = {**self._own.last, **last}

    def _unit(self, gathered: Accumulation) -> float:
        """How many times <g_n, d> the dots are: ``p.grad`` is ``scale`` times the ḡ of :attr:`statistics`."""
        return self.weighting.scale if gathered.direction is None else 1.0

    def _skip(self, gathered: Accumulation, seen: Statistics) -> None:
        own = self._own
        own.discard()
        self._remember(gathered, seen)
        # While all losses are finite, a GradScaler may only be looking for its scale, and will halve it. At a scale of
        # 1 or less, the gradients themselves are not finite.
        searching = gathered.scale is not None and gathered.scale.item() > 1 and bool(seen.losses.isfinite().all())
        if searching:
            own.count("skipped")
            return
        own.count("skipped", "nonfinite_in_a_row")
        if own.counts["nonfinite_in_a_row"] >= self.max_nonfinite:
            bad = [self.tasks[n] for n in seen.nonfinite_tasks()]
            present = [self.tasks[n] for n in seen.tasks]
            where = "of task " + ", ".join(map(repr, bad)) if bad else f"of the combination of tasks {present}"
            count = own.counts["nonfinite_in_a_row"]
            raise NonFiniteError(
                f"{count} {'step' if count == 1 else 'steps in a row'} had a non-finite loss or gradient, the last one "
                f"{where}; losses: {own.last['losses']}; max_nonfinite={self.max_nonfinite} allows no more"
            )

    # --- weights and statistics -------------------------------------------------------------------------------------

    @property
    def alpha(self) -> dict[Task, float]:
        """{task: weight α_n} of all tasks. If they follow from the step: the weights of the last one, or their means
        over the weighting's groups of parameters.

        With ``reduction="sum"``, :class:`CATS` multiplies the gradients by N α_n; this is α_n.
        """
        return self._named(range(len(self.tasks)), self._known_weights() / self.weighting.scale)

    @alpha.setter
    def alpha(self, weights: dict[Task, float]) -> None:
        raise AttributeError(
            "alpha is learnt: set the prior of cats.CATS, or fix weights with cats.weighting.Static(..)"
        )

    @property
    def multipliers(self) -> dict[str, float]:
        """{name: value} of the weighting's multipliers. If there is one per task, its name is like ``lambda_n[az]``."""
        named: dict[str, float] = {}
        for name, value in self.weighting.multipliers.items():
            if isinstance(value, Tensor):
                named |= {f"{name}[{task}]": v for task, v in zip(self.tasks, value.tolist(), strict=True)}
            else:
                named[name] = value
        return named

    @property
    def statistics(self) -> dict[str, Any]:
        """Counters and numbers of the last step, as a new dict. Reading them causes no host sync.

        * ``step``: the number of steps taken.
        * ``task_gradient_steps``: how many of them computed <g_n, ḡ>.
        * ``skipped``: the number of steps that were skipped because a loss or gradient was not finite.
        * ``nonfinite_in_a_row``: how many steps were skipped since the last step that was taken, without those in
          which a GradScaler looked for its scale.
        * ``losses``: {task: L_n} of the last step.
        * ``dots``: {task: <g_n, ḡ>} of the last step that computed it, with ḡ = Σ α_n g_n and α_n as in
          :attr:`alpha`. With ``reduction="sum"``, ``p.grad`` holds N ḡ. If the weighting has another ``direction`` d:
          <g_n, d>. "preconditioned" is of this ḡ; the others are of what was in ``p.grad`` before.
        * ``sqnorms``: {task: ‖g_n‖²} of the same step. nan where the engine does not know it, and with replicas in
          several processes if the weighting does not need it.
        * ``sqnorm``: Σ α_n <g_n, ḡ> of the same step. This is ‖ḡ‖² or, if ``cross_batch``, an estimate of it. With
          another direction, it is <ḡ, d>.
        * ``engine``, ``engine_reason``: the engine of the same step, and why it was chosen.

        ``dots``, ``sqnorms`` and ``sqnorm`` are over the shared parameters, of gradients before scaling and clipping.
        """
        return {**self._own.counts, **copy_of(self._own.last)}

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _split(
        self, losses: Losses | Loss, tasks: Tensor | Sequence[Task] | None, reduction: str
    ) -> TaskLosses | Examples:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        if tasks is not None:
            if self.weighting.cross_batch and self.needs_task_gradients:
                raise ValueError("a weighting with cross_batch needs {task: pair of losses}, not tasks=")
            return split_examples(losses, tasks, self.tasks, mean=reduction == "mean")
        return split_losses(losses, self.tasks, pairs=self.weighting.cross_batch)

    @property
    def _has_gathered(self) -> bool:
        """Whether backward() was called since the last step(). Other code may have dropped all gradients since."""
        gathered = self._own.accumulation
        return gathered is not None and any(p.grad is not None for p in gathered.params)

    def _open_accumulation(self) -> Accumulation:
        """The accumulation of the backward() calls since the last step(), or a new one if there were none."""
        own = self._own
        if own.accumulation is not None and self._has_gathered:
            return own.accumulation.copy()  # a copy, because the call may fail
        own.discard()  # other code may have set all its gradients to None
        own.forget_scaler()  # left over if a pre-hook of step() raised; torch runs those hooks before step()
        assert own.reducer is not None  # backward() has made it
        params, shared = trainable_parameters(self.param_groups, self._shared)
        due, direction = self._due, self.weighting.direction
        return Accumulation(
            params,
            shared,
            self.tasks,
            names=parameter_names(params, self.param_groups, self._engines.model),
            engines=self._engines,
            weighting=self.weighting,
            reducer=own.reducer,
            outer=self.needs_task_gradients,
            due=due,
            rates=rates(direction, self.base, params) if due else None,
            direction=remembered(direction, self.base, params) if due else None,
            step=own.counts["step"],
            backend=self.backend,
            groups=groups_of_parameters(self.weighting.groups, params, self.param_groups, self._engines.model),
        )

    def _together(self, call: str) -> AbstractContextManager[None]:
        """A context manager for "backward()" or "step()", in which all processes must do the same."""
        own = self._own
        own.reducer = self._reducer()
        devices = (p.device for group in self.param_groups for p in group["params"])
        device = next(devices, torch.device("cpu"))  # backward() refuses an optimizer without parameters, inside
        return own.reducer.together(
            Call(own.counts["step"] + 1, device, lambda: self._describe_call(call), self._describe_settings)
        )

    def _reducer(self) -> Reducer:
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        return distributed.reducer(params, self._communication, self._own.reducer)

    def _describe_call(self, call: str) -> Description:
        own = self._own
        calls = 0 if own.accumulation is None else own.accumulation.calls
        # Reading the scale is a host sync. step() has one anyway.
        scale = own.accumulation.scale if own.accumulation is not None and call == "step()" else None
        return describe_call(call, own.counts, calls, self.needs_task_gradients, self.param_groups, scale)

    def _describe_settings(self) -> Description:
        ids = None if self._shared is None else {id(p) for p in self._shared}
        params = [p for group in self.param_groups for p in group["params"]]
        return describe_settings(
            self.tasks,
            self.weighting,
            self.param_groups,
            max_nonfinite=self.max_nonfinite,
            engine=self._engines.asked,
            rows=self._engines.share,
            communication_dtype=str(self._communication.dtype),
            shared_parameters="all" if ids is None else [i for i, p in enumerate(params) if id(p) in ids],
            weight=self.alpha,
            multiplier=self.multipliers,
            count=self._own.counts,
            kernels=self.backend or choices(params[0].device),
        )

    def _known_weights(self) -> Tensor:
        """The weights of all tasks, (N,), before this step's gradients are known."""
        return self._own.weights if self.weighting.follows else self.weighting.weights()

    def _named(self, tasks: Iterable[int], values: Tensor) -> dict[Task, float]:
        return {self.tasks[n]: v for n, v in zip(tasks, values.tolist(), strict=True)}
