"""The weightings that are compared, and GradNorm, which the library does not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import cats
from cats.weighting import Static, Weighting

from .problems import Trial


class GradNorm(Weighting):
    """Weights that make all tasks learn at the same rate.

    Chen et al., "GradNorm: Gradient normalization for adaptive loss balancing in deep multitask networks", ICML 2018.
    In every step, with s_n the norm of the gradient of L_n in the last shared layer, and its mean over tasks of the
    weighted norms G = mean w_n s_n held fixed, the weights descend on

        Σ |w_n s_n − G r_n^a|,    r_n = (L_n / L_n at the first step) / (the mean of this ratio over the tasks).

    As in LibMTL, w = K softmax(p), which keeps w positive with Σ w_n = K, and Adam moves p.

    Args:
        power: a, how strongly slow tasks are pushed.
        lr: the learning rate of p.
    """

    period = 1

    def __init__(self, power: float = 1.5, lr: float = 0.025) -> None:
        self.power, self.lr = power, lr
        self.first: Tensor | None = None  # the losses of the first step

    def start(self, tasks: int) -> None:
        self.p = torch.zeros(tasks, dtype=torch.float64)
        self.adam = torch.optim.Adam([self.p], lr=self.lr)

    def weights(self) -> Tensor:
        return len(self.p) * torch.softmax(self.p, dim=0)

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        if self.first is None:
            self.first = losses
        norms, w = sqnorms.sqrt(), self.weights()
        rates = losses / self.first
        target = (w * norms).mean() * (rates / rates.mean()) ** self.power
        slope = torch.sign(w * norms - target) * norms  # with respect to w
        self.p.grad = w * (slope - (w * slope).mean())  # with respect to p
        self.adam.step()


def _cats(base: Optimizer, tasks: int, trial: Trial, **settings: Any) -> cats.MultiTask:
    return cats.CATS(base, tasks, **settings)


REFERENCE = "equal"

# Makes the optimizer of a method from the base optimizer, the number of tasks and the trial. All settings that are not
# named are the defaults.
METHODS: dict[str, Callable[[Optimizer, int, Trial], cats.MultiTask]] = {
    REFERENCE: lambda base, tasks, trial: cats.MultiTask(base, tasks, Static()),
    "GradNorm": lambda base, tasks, trial: cats.MultiTask(base, tasks, GradNorm(), shared=trial.last_shared),
    "softmax": partial(_cats, simplex="softmax"),
    "lagrangian": partial(_cats, simplex="lagrangian"),
    "proximal": _cats,
    "proximal, κ=1": partial(_cats, strength=1.0),
    "preconditioned": partial(_cats, direction="preconditioned"),
    "preconditioned, κ=1": partial(_cats, direction="preconditioned", strength=1.0),
    "momentum": partial(_cats, direction="momentum"),
    "momentum, κ=1": partial(_cats, direction="momentum", strength=1.0),
    "update": partial(_cats, direction="update"),
    "update, κ=1": partial(_cats, direction="update", strength=1.0),
}
