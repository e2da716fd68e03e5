"""What a loss is: a scalar tensor with a graph, or a callable that returns one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

Loss: TypeAlias = Tensor | Callable[[], Tensor]


@dataclass(frozen=True)
class TaskLosses:
    """One loss per task. If a task has two, of two halves of its batch, its loss is their mean.

    Attributes:
        tasks: the index of the task of each loss.
        losses: scalar tensors with a graph, or callables that return one.
        names: the name of each loss in error messages.
    """

    tasks: list[int]
    losses: list[Loss]
    names: list[str]

    def shares(self, weights: Sequence[float]) -> list[float]:
        """The factor of each loss in Σ w_n L_n. weights: of all N tasks."""
        return [weights[n] / self.tasks.count(n) for n in self.tasks]

    def evaluated(self) -> tuple[TaskLosses, list[Tensor]]:
        """The same losses as tensors, and their values, 0-d float64. Callables are called, and all graphs are kept."""
        tensors = [evaluate(loss, name) for loss, name in zip(self.losses, self.names, strict=True)]
        return replace(self, losses=list(tensors)), list(map(number, tensors))


def evaluate(loss: Loss, name: str) -> Tensor:
    """The loss as a scalar tensor. A callable is called.

    Args:
        loss: a floating-point tensor with one element and a graph, or a callable without arguments that returns one.
        name: the name of the loss in error messages.

    Raises:
        TypeError: the loss is not a tensor.
        ValueError: it has more than one element, is not floating-point, or does not require grad.
    """
    value = loss() if callable(loss) else loss
    if not isinstance(value, Tensor):
        raise TypeError(f"loss of {name}: expected a scalar tensor, got {type(value).__name__}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"loss of {name}: expected a scalar float tensor, got shape {tuple(value.shape)}, {value.dtype}"
        )
    if not value.requires_grad:
        raise ValueError(f"loss of {name}: does not require grad (computed under no_grad, or detached?)")
    return value


def seed(value: Tensor, weight: float, scale: Tensor | None) -> Tensor:
    """The gradient at which the backward pass of a loss starts: ``weight``, times GradScaler's scale if there is one.

    It has the shape, dtype and device of ``value``. A weight that is too small for the dtype is rounded to 0.

    Raises:
        ValueError: the weight is too large for the dtype.
    """
    if abs(weight) > torch.finfo(value.dtype).max:
        raise ValueError(f"the weight {weight:g} is too large for a loss of {value.dtype}")
    start = torch.full_like(value, weight)
    return start if scale is None else start * scale.to(device=value.device, dtype=value.dtype)


def number(value: Tensor) -> Tensor:
    """The value of a loss without its graph: 0-d float64, on the same device."""
    return value.detach().double().reshape(())


def square(scale: Tensor | None) -> Tensor | float:
    """The factor by which inner products of gradients are too large, if the gradients are multiplied by ``scale``."""
    return 1.0 if scale is None else scale.double() ** 2
