"""The sums of the training losses since the last line of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from cats.nmt.training import processes

Sums = dict[str, list[float]]  # {task: [summed nll in nats, target tokens]}


class LossLog:
    """Adds up the losses of every task, in this process, between two lines of metrics.

    `add` keeps the losses as tensors: reading a number from the device makes the host wait for it. They are read
    together, once per line of metrics.

    Args:
        keep_updates: keep the losses of the current update in `of_update` too, until ``take_update``.
    """

    def __init__(self, tasks: list[str], *, keep_updates: bool = False) -> None:
        self.tasks = tasks
        self.of_update: list[tuple[str, Tensor, int]] | None = [] if keep_updates else None
        self.sums: Sums = {}
        self.unread: list[tuple[str, Tensor, int]] = []  # (task, nll sum, tokens), not yet in `sums`

    def add(self, task: str, nll: Tensor, tokens: int) -> None:
        """Adds the summed nll (a scalar) of this many target tokens."""
        self.unread.append((task, nll, tokens))
        if self.of_update is not None:
            self.of_update.append((task, nll, tokens))

    def take_update(self) -> list[tuple[str, Tensor, int]]:
        """What was added since the last call, as (task, nll sum, tokens)."""
        taken, self.of_update = self.of_update or [], []
        return taken

    def per_process(self) -> list[Sums]:
        """The sums of every process. All processes must call this."""
        self.read()
        count, width = processes.world_size(), 2 * len(self.tasks)
        slots = [0.0] * (count * width)
        own = [x for task in self.tasks for x in self.sums.get(task, (0.0, 0.0))]
        slots[processes.rank() * width : (processes.rank() + 1) * width] = own
        slots = processes.all_reduce_sum(slots)
        rows = [slots[i * width : (i + 1) * width] for i in range(count)]
        return [{t: [*row[2 * n : 2 * n + 2]] for n, t in enumerate(self.tasks) if row[2 * n + 1]} for row in rows]

    def totals(self) -> Sums:
        """The sums over all processes; tasks without tokens are left out. All processes must call this."""
        parts = self.per_process()
        sums = {task: [sum(part[task][i] for part in parts if task in part) for i in (0, 1)] for task in self.tasks}
        return {task: both for task, both in sums.items() if both[1]}

    def restore(self, parts: Iterable[Mapping[str, Iterable[float]]]) -> None:
        """Adds the sums of some processes, as `per_process` gave them for a checkpoint."""
        for part in parts:
            for task, numbers in part.items():
                entry = self.sums.get(task, [0.0, 0.0])
                self.sums[task] = [a + b for a, b in zip(entry, numbers, strict=True)]

    def clear(self) -> None:
        """Starts from zero: the line of metrics is written."""
        self.sums = {}

    def drop_unread(self) -> None:
        """Forgets the losses added since the last read."""
        self.unread = []
        if self.of_update is not None:
            self.of_update = []

    def read(self) -> None:
        """Adds the losses that are still on the device to `sums`. This waits for the device."""
        if self.unread:
            values = torch.stack([nll for _, nll, _ in self.unread]).tolist()
            for (task, _, tokens), nll in zip(self.unread, values, strict=True):
                entry = self.sums.setdefault(task, [0.0, 0.0])
                entry[0] += nll
                entry[1] += tokens
            self.unread = []
