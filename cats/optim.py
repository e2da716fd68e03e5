"""The optimizer cats.CATS: cats.MultiTask with the weighting of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import weighting as weightings
from .multitask import MultiTask
from .tasks import Task
from .weighting import cats as defaults
from .weighting.checks import numbers_of


class CATS(MultiTask):
    """Curvature Aware Task Scaling over any torch optimizer.

    Algorithm 1 of Li & Gong, "Robust Optimization for Multilingual Translation with Imbalanced Data", NeurIPS 2021,
    arXiv 2104.07639. It is :class:`MultiTask` with the weighting :class:`cats.weighting.CATS`. Every step moves the
    parameters θ along ḡ = Σ α_n g_n. Every ``inner_steps``-th step then updates the weights α, so that ‖ḡ‖² becomes
    small, which favours flat regions of the loss. The other steps cost one backward pass of the weighted loss::

        optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=5e-4), tasks=["az", "be"])
        for batches in loader:
            optimizer.zero_grad()
            optimizer.backward({task: functools.partial(loss, batch) for task, batch in batches.items()})
            optimizer.step()

    The paper minimises ‖ḡ‖² over Σ α_n = 1, α_n ≥ 0 (Eq. 3) by descent in α and ascent in multipliers λ on Eq. 4,

        L(θ, α, λ) = Σ α_n L_n − λ_c(ε − ‖Σ α_n g_n‖²) + λ_s(Σ α_n − 1)² − Σ λ_n(α_n − ε).

    Taken literally, this gives up tasks: it rewards the task with the smallest gradient, which then learns faster, so
    that its gradient becomes smaller still. The default form, ``simplex="proximal"``, holds α near a prior instead, has
    a floor, and does not depend on the common scale of the losses. The text of the paper gives Algorithm 1, Eq. 4 and
    the start α = 1, λ = 0, but no value for any setting below.

    On 18 small problems (bench/README.md) the default has 3 to 5 times less error than equal weights where one of
    several regression tasks is noisy, and 1.0 to 1.2 times their error where all tasks are alike. A task that stays
    hard or noisy after the others are solved gets less weight although no other task gains by it, and is then learned
    more slowly: 1.5 times the error of equal weights on average in one of the problems, and up to 3.8 times. A smaller
    ``strength`` or a larger ``floor`` limits this. ``strength=1`` gains more with noisy tasks, but costs up to 1.9
    times where all are alike.

    Args:
        optimizer, tasks, shared, engine, rows, model, backend, max_nonfinite, process_group, communication_dtype: as in
            :class:`MultiTask`.
        inner_steps: m, the number of steps of θ per update of α.
        alpha_lr: the learning rate of α. "proximal": β, the share of the way to its target that a_n goes in each
            update, at most 1. "softmax": of the logits a. None: 0.1 for "proximal", 1 for "softmax", 1e-3 for
            "lagrangian".
        multiplier_lr: the learning rate of the multipliers, which "proximal" does not have. None: 1 for "softmax", 1e-3
            for "lagrangian".
        epsilon: ε, the upper bound for ‖Σ α_n g_n‖². With "lagrangian", also the lower bound for α_n. "proximal" does
            not use it.
        simplex: how Σ α_n = 1 and α_n ≥ 0 are kept.

            * "proximal": α moves within a trust region around the prior π. With r_n = <g_n, ḡ>/‖ḡ‖², clipped to [−5,
              10], a_n ← (1 − β) a_n + β κ (1 − r_n), and α = (1 − ρ) softmax(log π + a) + ρ π.
            * "softmax": Eq. 4 with α = softmax(a). The only multiplier is λ_c. The gradient of a is divided by 1 + 2
              λ_c.
            * "lagrangian": Eq. 4 as written, with the multipliers λ_c, λ_s and λ_n. It starts at α_n = 1, so at first Σ
              α_n = N. α and the multipliers are clipped at 0; the paper does not say how to keep them there. Its
              learning rates must be small where losses or gradients are large.
        strength: κ of "proximal". A task whose gradient has an inner product with ḡ that is larger than the mean by
            ‖ḡ‖² gets a weight that is smaller by the factor exp(−κ). 0 keeps α = π.
        floor: ρ: α_n is at least ρ π_n ("proximal") or ρ / N ("softmax"). None: 0.1 for "proximal", 0 for "softmax".
        prior: π of "proximal", as {task: number} with all tasks, or N numbers. Only the ratios matter. None: uniform.
            It can be changed before each step through :attr:`prior`.
        reduction: "sum" or "mean": whether ``p.grad`` gets N ḡ or ḡ. With "sum", equal weights give the gradient of
            ``sum(losses)``, so the learning rate and the threshold for clipping can stay as they were. Adam hardly
            depends on it. α, <g_n, ḡ> and multipliers are those of ḡ with either. "lagrangian" always uses Σ α_n g_n,
            which at its start α = 1 is the gradient of ``sum(losses)``.
        loss_term: whether the update of α includes the losses. "softmax" and "lagrangian": the term Σ α_n L_n of Eq. 4.
            "proximal": log Σ α_n L_n, which has no scale either. It moves weight to the tasks with the lowest loss. The
            text of the paper does not say whether the authors included it. Without it, "softmax" converges to the
            weights for which ‖Σ α_n g_n‖ is smallest (the min-norm point).
        cross_batch: whether to estimate ‖Σ α_n g_n‖² from two independent halves A, B of each task's batch, with
            v_n = ½(<g_n^A, ḡ^B> + <g_n^B, ḡ^A>). The expected value of this estimate is the squared norm of the
            expected gradient. With False, as in the paper, sampling noise makes the norm larger. With True, backward()
            needs a pair of losses per task whenever :attr:`needs_task_gradients` is true, and 2K gradients are in
            memory.
        direction: d of v_n = <g_n, d>, only for "proximal". Then r_n = <g_n, d> / <ḡ, d>.

            * "gradient": ḡ, as in the paper.
            * "preconditioned": ḡ times lr / (√v̂ + ε), Adam's metric. v_n is how much L_n decreases along it, to first
              order. Σ α_n v_n is positive.
            * "momentum": the running mean of the gradients that the base optimizer has before the step, as Adam and its
              relatives or SGD with momentum have it. It is of earlier batches, so the sampling noise of this one adds
              no bias to v_n, as it does to <g_n, ḡ>; cross_batch does the same with half of the batch.
            * "update": the last step of Adam or AdamW, lr m̂ / (√v̂ + ε). So v_n is how much L_n decreases by it, to
              first order.

            <ḡ, d> of the last two is negative where the last steps have gone too far, as they may at a high learning
            rate. Then α does not change. "preconditioned" and "update" need memory for one more gradient. In the first
            step only "gradient" exists.

    Warns:
        UserWarning: once per task, if its weight was at its floor for 100 updates of α; once per multiplier, if it
            grows without bound; once, if 20 updates of α in a row had one task each. The message says what to change.

    Attributes:
        multipliers: "softmax": ``lambda_c``. "lagrangian": also ``lambda_s``, and a ``lambda_n[task]`` per task.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: int | Iterable[Task],
        *,
        inner_steps: int = defaults.INNER_STEPS,
        alpha_lr: float | None = None,
        multiplier_lr: float | None = None,
        epsilon: float = defaults.EPSILON,
        simplex: defaults.Simplex = defaults.SIMPLEX,
        strength: float = defaults.STRENGTH,
        floor: float | None = None,
        prior: Mapping[Any, float] | Sequence[float] | None = None,
        reduction: defaults.Reduction = defaults.REDUCTION,
        loss_term: bool = defaults.LOSS_TERM,
        cross_batch: bool = defaults.CROSS_BATCH,
        direction: defaults.Direction = defaults.DIRECTION,
        shared: Iterable[Tensor] | None = None,
        engine: str = "auto",
        rows: float | None = None,
        model: nn.Module | None = None,
        backend: str | None = None,
        max_nonfinite: int = 20,
        process_group: Any = None,
        communication_dtype: torch.dtype | None = None,
    ) -> None:
        weighting = weightings.CATS(
            inner_steps=inner_steps,
            alpha_lr=alpha_lr,
            multiplier_lr=multiplier_lr,
            epsilon=epsilon,
            simplex=simplex,
            strength=strength,
            floor=floor,
            prior=prior,
            reduction=reduction,
            loss_term=loss_term,
            cross_batch=cross_batch,
            direction=direction,
        )
        super().__init__(
            optimizer,
            tasks,
            weighting,
            shared=shared,
            engine=engine,
            rows=rows,
            model=model,
            backend=backend,
            max_nonfinite=max_nonfinite,
            process_group=process_group,
            communication_dtype=communication_dtype,
        )

    @property
    def prior(self) -> dict[Task, float]:
        """{task: π_n} of "proximal", with sum 1. It may be set between two steps, as {task: number} or N numbers.

        For example to the tasks' shares of the tokens in the next batch: with mean losses per token, training then
        starts from the plain mean over all tokens (``reduction="mean"``) or N times that mean (``"sum"``). A task that
        is not in the dict gets 0: it may be absent from the next batch. With several processes, all must set the same
        numbers.

        Raises:
            ValueError: ``simplex`` is not "proximal", a task is unknown, a number is negative or not finite, or all
                are 0.
            RuntimeError: it is set after backward() and before step().
        """
        return self._named(range(len(self.tasks)), self._cats.prior)

    @prior.setter
    def prior(self, prior: Mapping[Any, float] | Sequence[float]) -> None:
        if self._has_gathered:
            raise RuntimeError("set the prior before the first backward() of a step, or call zero_grad() first")
        self._cats.prior = numbers_of(prior, self.tasks, "CATS: prior", all_named=False)

    @property
    def _cats(self) -> weightings.CATS:
        assert isinstance(self.weighting, weightings.CATS)
        return self.weighting
