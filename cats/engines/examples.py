"""Losses per example or token, and the task of each: the form that needs one forward pass for all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .losses import Loss


@dataclass(frozen=True)
class Examples:
    """The losses of a mixed batch.

    Attributes:
        loss: (B, ...) with a graph, or a callable without arguments that returns it.
        ids: (B,), or more of the loss's leading dimensions: int64, the index of the task of each entry, -1 for none.
        tasks: the indices in ``ids``, ascending, without -1.
        count: the number N of all tasks.
        mean: whether the loss L_n of task n is the mean of its entries, or their sum.
    """

    loss: Loss
    ids: Tensor
    tasks: list[int]
    count: int
    mean: bool

    def evaluate(self) -> Tensor:
        """The losses. A callable is called.

        Raises:
            TypeError: not a tensor.
            ValueError: its leading dimensions are not those of ``ids``, it is not floating-point or has no graph.
        """
        value = self.loss() if callable(self.loss) else self.loss
        if not isinstance(value, Tensor):
            raise TypeError(f"losses with tasks=: expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point() or value.shape[: self.ids.dim()] != self.ids.shape:
            hint = '; a loss with reduction="none" has one for each example' if value.dim() == 0 else ""
            raise ValueError(
                f"losses with tasks= of shape {tuple(self.ids.shape)}: expected a float tensor of shape "
                f"({', '.join(map(str, self.ids.shape))}, ...), got {tuple(value.shape)}, {value.dtype}{hint}"
            )
        if not value.requires_grad:
            raise ValueError("the losses do not require grad (computed under no_grad, or detached?)")
        return value

    def evaluated(self) -> tuple[Examples, list[Tensor]]:
        """The same with a tensor as loss, and the losses of ``tasks``, 0-d float64. A callable is called."""
        value = self.evaluate()
        return replace(self, loss=value), self.values(value)

    def seed(self, value: Tensor, weights: Sequence[float], scale: Tensor | None) -> Tensor:
        """The gradient of Σ w_n L_n by ``value``, times GradScaler's scale. weights: N numbers."""
        table = torch.tensor([*weights, 0.0], dtype=torch.float64, device="cpu").to(value.device, non_blocking=True)
        ids = self._ids(value)
        table = table / self._entries(value, ids)
        if scale is not None:  # before rounding, because a share of the loss may be too small for float16
            table = table * scale.to(value.device)
        seed = table.to(value.dtype)[ids]  # -1 takes the last number, 0
        return seed.view(*seed.shape, *[1] * (value.dim() - seed.dim())).expand_as(value)

    def seed_of(self, value: Tensor, task: int, scale: Tensor | None) -> Tensor:
        """The gradient of L_n of one task by ``value``, times GradScaler's scale."""
        return self.seed(value, [float(n == task) for n in range(self.count)], scale)

    def values(self, value: Tensor) -> list[Tensor]:
        """The loss of each of ``tasks``, 0-d float64."""
        ids = self._ids(value)
        entries = value.detach().double()
        if value.dim() > ids.dim():
            entries = entries.flatten(ids.dim()).sum(-1)
        sums = entries.new_zeros(self.count + 1).index_add_(0, ids.flatten() % (self.count + 1), entries.flatten())
        means = (sums / self._entries(value, ids)).unbind()
        return [means[n] for n in self.tasks]  # not means[self.tasks]: the host would wait for a copy of the list

    def by_rows(self) -> list[Tensor]:
        """The tasks of the rows of a model that gave these losses, from its first dimension to all of those of ids.

        If all entries of an example are of its task or of none, the task of the example is known too, and so on.
        """
        lists, ids = [self.ids.flatten()], self.ids
        while ids.dim() > 1:
            task = ids.amax(-1)
            if bool(((ids != task[..., None]) & (ids >= 0)).any()):
                break
            ids = task
            lists.insert(0, ids.flatten())
        return lists

    def _ids(self, value: Tensor) -> Tensor:
        return self.ids.to(value.device, non_blocking=not value.is_cpu)

    def _entries(self, value: Tensor, ids: Tensor) -> Tensor | float:
        """(N + 1,) the number of entries of each task, or 1 for sums."""
        if not self.mean:
            return 1.0
        per_id = value.numel() // max(ids.numel(), 1)
        return entry_counts(ids, self.count).clamp(min=1) * per_id


def entry_counts(ids: Tensor, count: int) -> Tensor:
    """(N + 1,) int64: how many entries each of the N tasks has, and last those with the index -1.

    The host does not wait for the device, as it would with bincount. Integers are added, so the order does not matter.
    """
    index = ids.flatten() % (count + 1)
    return index.new_zeros(count + 1).index_add_(0, index, torch.ones_like(index))
