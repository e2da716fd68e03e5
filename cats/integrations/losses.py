"""What the integrations share: the losses of one of the batches of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from cats.engines.examples import entry_counts
from cats.multitask import MultiTask


class BatchLosses:
    """The losses of a batch, as a method of the user returned them.

    Args:
        losses: {task: loss}; or a pair: the losses of the entries (B, ...) or a callable that returns them, and the
            task of each entry. Both as :meth:`cats.MultiTask.backward` takes them.
        reduction: with a pair: whether the loss of a task is the "mean" of its entries or their "sum".

    Raises:
        TypeError: losses have another form, or the losses of the entries are a single number.
    """

    def __init__(self, losses: Any, reduction: Literal["mean", "sum"] = "mean") -> None:
        self._reduction = reduction
        self._values: dict[Any, Tensor] = {}  # the losses that are known: 0-d, or of a pair (B, ...)
        self._tasks: Any = None
        if isinstance(losses, Mapping):
            self._losses: Any = {task: self._noted(loss, task) for task, loss in losses.items()}
        elif isinstance(losses, tuple) and len(losses) == 2 and (isinstance(losses[0], Tensor) or callable(losses[0])):
            self._losses, self._tasks = self._noted(_entries(losses[0]), "entries"), losses[1]
        else:
            raise TypeError(
                "the losses of a batch must be {task: loss}, or the losses of its entries (B, ...) and the task of "
                f"each (B,), got {type(losses).__name__}"
            )

    def backward(self, optimizer: MultiTask, *, steps: float, scaler: Any, last: bool) -> None:
        """``optimizer.backward()`` of the losses divided by ``steps``, the number of batches of the step."""
        losses = divided(self._losses, steps)
        if self._tasks is None:
            optimizer.backward(losses, scaler=scaler, last=last)
        else:
            optimizer.backward(losses, tasks=self._tasks, reduction=self._reduction, scaler=scaler, last=last)

    def total(self, optimizer: MultiTask) -> Tensor:
        """The sum of the tasks' losses, for logs: 0-d, detached.

        Raises:
            TypeError: losses are callables, and this is before :meth:`backward`.
        """
        if len(self._values) < (len(self._losses) if self._tasks is None else 1):
            raise TypeError("the losses of the tasks must be tensors here, not callables")
        if not self._values:  # a process without examples
            return torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)
        if self._tasks is None:
            return torch.stack(list(self._values.values())).sum()
        entries, tasks = self._values["entries"], self._tasks
        if not isinstance(tasks, Tensor):
            tasks = torch.tensor([optimizer.tasks.index(task) for task in tasks], dtype=torch.int64, device="cpu")
        tasks = tasks.long().to(entries.device, non_blocking=entries.is_cuda)
        tasks = tasks.reshape(*tasks.shape, *[1] * (entries.dim() - tasks.dim())).expand_as(entries)
        if self._reduction == "mean":
            entries = entries / entry_counts(tasks, len(optimizer.tasks))[tasks]
        return torch.where(tasks >= 0, entries, 0.0).sum()

    def _noted(self, loss: Any, task: Any, share: float = 1.0) -> Any:
        """The same loss. Its value is noted as soon as it is known."""
        if isinstance(loss, list | tuple):  # two halves of a batch, whose mean is the loss
            return [self._noted(half, (task, k), 1 / len(loss)) for k, half in enumerate(loss)]
        if isinstance(loss, Tensor):
            self._values[task] = loss.detach() * share
            return loss

        def evaluate() -> Tensor:
            value: Tensor = loss()
            self._values[task] = value.detach() * share  # some engines call it again, and get the same value
            return value

        return evaluate


def _entries(losses: Any) -> Any:
    """The same losses of entries, or a callable that returns them. Refuses a single number."""
    if not isinstance(losses, Tensor):
        return lambda: _entries(losses())
    if losses.dim() == 0:
        raise TypeError(
            "the losses of the entries of a batch must have the shape (B, ...), got a single number: pass "
            'reduction="none" to the loss function'
        )
    return losses


def divided(loss: Any, by: float) -> Any:
    """The loss, or the callable that returns it, divided by a number. Of a dict or a sequence: each of them."""
    if by == 1:
        return loss
    if isinstance(loss, Mapping):
        return {task: divided(each, by) for task, each in loss.items()}
    if isinstance(loss, list | tuple):
        return [divided(each, by) for each in loss]
    return loss / by if isinstance(loss, Tensor) else lambda: loss() / by
