"""GradNorm: all tasks shall learn at the same rate, and their weighted gradients have norms that fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .adam import adam_start, adam_step
from .adaptive import Adaptive, Reduction
from .checks import check_number, per_task

Simplex = Literal["renormalise", "softmax"]


class GradNorm(Adaptive):
    """Weights that give slow tasks larger gradients.

    Chen, Badrinarayanan, Lee & Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks", ICML 2018, arXiv 1711.02257, Algorithm 1. With s_n the norm of the gradient of L_n by the
    shared parameters, the weights descend in every step on

        Σ |w_n s_n − G r_n^a|,   G = mean of w_m s_m,   r_n = (L_n / L_n(0)) / (mean of L_m / L_m(0)),

    where G r_n^a is held fixed. The paper takes the norms by the last shared layer only: pass
    ``shared=model.last.parameters()`` to :class:`cats.MultiTask`. Without it they are those of all parameters.

    Means are over the tasks of the batch, which keep the sum of their weights. Adam moves the weights; Algorithm 1 does
    not name an optimizer for them.

    Args:
        power: a, how strongly slow tasks are pushed. 1.5 is the default of LibMTL.
        lr: the learning rate of the weights.
        simplex: "renormalise": w itself moves, and is multiplied by a number after each step so that Σ w_n = N, as in
            the paper. It is clipped at 0. "softmax": w = N softmax(p), and p moves, as in LibMTL.
        initial: L_n(0). 1: the first loss, as in the paper. M: the mean of the first M losses; until then the weights
            stay (LibMTL: the first epoch). Or a number for each task; the paper advises log C for the cross-entropy of
            C classes.
        reduction: whether the weights are N α_n ("sum", as in the paper) or α_n ("mean").

    Raises:
        TypeError, ValueError: an option is not a number, or has a value that is not allowed. Creating the optimizer
            raises it if there is not one number per task.
    """

    losses_only = False
    needs_sqnorms = True
    remembered = ("adam", "initial")

    def __init__(
        self,
        *,
        power: float = 1.5,
        lr: float = 0.025,
        simplex: Simplex = "renormalise",
        initial: int | Sequence[float] | Tensor = 1,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__(reduction)
        if simplex not in ("renormalise", "softmax"):
            raise ValueError(f"GradNorm: simplex must be 'renormalise' or 'softmax', got {simplex!r}")
        if isinstance(initial, bool) or (isinstance(initial, int) and initial < 1):
            raise ValueError(f"GradNorm: initial must be a number of steps or one number per task, got {initial!r}")
        self.power = check_number("GradNorm: power", power)
        self.lr = check_number("GradNorm: lr", lr)
        self.simplex = simplex
        self._given = initial

    def start(self, tasks: int) -> None:
        super().start(tasks)
        at_first = float(self.simplex == "renormalise")
        self._adam = adam_start(torch.full((tasks,), at_first, dtype=torch.float64, device="cpu"))
        self._initial = torch.zeros(2, tasks, dtype=torch.float64, device="cpu")  # the first losses: sum and number
        self.first = 0  # the number of losses in L_n(0)
        if isinstance(self._given, int):
            self.first = self._given
        else:
            self._initial[0] = per_task(self._given, tasks, "GradNorm: initial")
            self._initial[1] = 1.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "simplex": self.simplex}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        numbers = dict(state)
        simplex = numbers.pop("simplex", self.simplex)  # earlier versions did not save it
        if simplex != self.simplex:  # it says what the numbers are: w or p
            raise ValueError(f"GradNorm: the state is for simplex={simplex!r}, this has simplex={self.simplex!r}")
        super().load_state_dict(numbers)

    def _alpha(self) -> Tensor:
        value = self._adam[0]
        return value / len(value) if self.simplex == "renormalise" else torch.softmax(value, 0)

    def weights(self) -> Tensor:
        return self._alpha() * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._check_finite(losses, sqnorms)
        here, n = list(present), len(self._adam[0])
        total, count = self._initial[:, here]
        early = count < self.first
        self._initial = self._initial.clone()
        self._initial[:, here] += torch.where(early, torch.stack([losses, torch.ones_like(losses)]), 0.0)
        total, count = self._initial[:, here]
        if (count < self.first).any():
            return
        first = total / count
        ratios = torch.where(first > 0, losses / first, 1.0).clamp(min=0)
        rates = ratios / ratios.mean() if ratios.sum() > 0 else torch.ones_like(ratios)
        w, norms = self._alpha()[here] * n, sqnorms.sqrt()
        target = (w * norms).mean() * rates**self.power
        slopes = torch.sign(w * norms - target) * norms  # with respect to w
        before = self._adam[0, here]
        if self.simplex == "softmax":  # and with respect to p, where these tasks keep their sum
            slopes = w * (slopes - w @ slopes / w.sum())
        self._adam = adam_step(self._adam, slopes, here, lr=self.lr)
        after = self._adam[0, here]
        if self.simplex == "softmax":
            self._adam[0, here] = after - torch.logsumexp(after, 0) + torch.logsumexp(before, 0)
        else:
            after = after.clamp(min=1e-12)
            self._adam[0, here] = after / after.sum() * before.sum()
