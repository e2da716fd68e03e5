"""FAMO: every task's log loss shall fall at the same rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adam import adam_start, adam_step
from .adaptive import Adaptive, Reduction
from .checks import check_number, per_task

SMALLEST = 1e-8  # is added to L_n − b_n, as in the code of the authors


class FAMO(Adaptive):
    """Weights for which the logarithms of all losses fall at the same rate, without any task's gradient.

    Liu, Feng, Stone & Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, arXiv 2306.03792, Algorithm 1.
    With z = softmax(ξ) and D_n = L_n − b_n, the gradient is that of Σ c z_n log D_n: the weights are

        w_n = c z_n / D_n,   c = 1 / Σ (z_m / D_m).

    After the step, the same batch has the losses D'. Adam moves ξ by the derivative of Σ z_n (log D_n − log D'_n), with
    weight decay: the task that has improved least gets more weight.

    Only the tasks of a batch move their ξ_n, and they share the weight that they have together in softmax(ξ). A loss
    below b_n counts as b_n.

    A step evaluates all losses before its backward pass, and once more after the step, without gradients: pass
    callables to backward(). It has two host syncs more than other weightings. With several backward() calls per step,
    the weights are known at the last one only, so one gradient per task is kept until then: pass ``last`` to
    backward() in the first step.

    Args:
        lr: the learning rate of ξ.
        decay: γ, the weight decay of ξ. 0.01 in the module of the authors, 0.001 in most of their experiments.
        baselines: b_n, a lower bound of each loss. None: 0.
        reduction: whether the weights are N w_n ("sum") or w_n ("mean", as in the paper).

    Raises:
        TypeError, ValueError: an option is not a number, or has a value that is not allowed. Creating the optimizer
            raises it if there is not one number per task.
    """

    needs_losses = True
    losses_again = True
    remembered = ("adam",)

    def __init__(
        self,
        *,
        lr: float = 0.025,
        decay: float = 0.01,
        baselines: Sequence[float] | Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.lr = check_number("FAMO: lr", lr)
        self.decay = check_number("FAMO: decay", decay)
        self._given = baselines

    def start(self, tasks: int) -> None:
        super().start(tasks)
        self.baselines = per_task(self._given, tasks, "FAMO: baselines")
        self._adam = adam_start(torch.zeros(tasks, dtype=torch.float64, device="cpu"))

    def weights_from_losses(self, losses: Tensor, present: Sequence[int]) -> Tensor:
        here = list(present)
        logits = self._adam[0]
        shared = torch.softmax(logits, 0)[here].sum()
        return torch.softmax(logits[here] - self._log(losses, here), 0) * shared * self.scale

    def update_after(self, before: Tensor, after: Tensor, present: Sequence[int]) -> None:
        here = list(present)
        fall = self._log(before, here) - self._log(after, here)
        z = torch.softmax(self._adam[0, here], 0)
        self._adam = adam_step(self._adam, z * (fall - z @ fall), here, lr=self.lr, decay=self.decay)

    def _log(self, losses: Tensor, here: list[int]) -> Tensor:
        self._check_finite(losses)
        return ((losses - self.baselines[here]).clamp(min=0) + SMALLEST).log()
