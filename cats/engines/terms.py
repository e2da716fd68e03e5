"""The single loss tensors of a backward() call: one for each task, or one of a mixed batch for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .examples import Examples
from .losses import Loss, TaskLosses, evaluate, number, seed


@dataclass(frozen=True)
class Term:
    """A loss tensor, or a callable that returns it.

    Attributes:
        tasks: the indices of the tasks whose losses it has.
        name: for error messages.
        evaluate: gives the tensor. A callable is called.
        values: maps the tensor, or its tangent, to one number for each of ``tasks``: 0-d float64.
        seed: maps the tensor, one of ``tasks`` and GradScaler's scale to the gradient of scale · L_n by the tensor.
    """

    loss: Loss
    tasks: list[int]
    name: str
    evaluate: Callable[[], Tensor]
    values: Callable[[Tensor], list[Tensor]]
    seed: Callable[[Tensor, int, Tensor | None], Tensor]


def terms(losses: TaskLosses | Examples) -> list[Term]:
    """The loss tensors of a call. Each task has one loss."""
    if isinstance(losses, Examples):
        return [Term(losses.loss, losses.tasks, "losses with tasks=", losses.evaluate, losses.values, losses.seed_of)]
    return [
        Term(
            loss,
            [n],
            f"loss of {name}",
            lambda loss=loss, name=name: evaluate(loss, name),  # type: ignore[misc]
            lambda value: [number(value)],
            lambda value, task, scale: seed(value, 1.0, scale),
        )
        for n, loss, name in zip(losses.tasks, losses.losses, losses.names, strict=True)
    ]
