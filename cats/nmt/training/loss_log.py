"""The sums of the training losses since the last line of metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from cats.nmt.training import processes

Sums = dict[str, list[float]]  # {task: [summed nll in nats, target tokens, sentence pairs]}
_WIDTH = 3


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
        self.unread: list[tuple[str, Tensor, int, int]] = []  # (task, nll sum, tokens, pairs), not yet in `sums`

    def add(self, task: str, nll: Tensor, tokens: int, pairs: int) -> None:
        """Adds the summed nll (a scalar) of this many target tokens, of so many sentence pairs."""
        self.unread.append((task, nll, tokens, pairs))
        if self.of_update is not None:
            self.of_update.append((task, nll, tokens))

    def take_update(self) -> list[tuple[str, Tensor, int]]:
        """What was added since the last call, as (task, nll sum, tokens)."""
        taken, self.of_update = self.of_update or [], []
        return taken

    def per_process(self) -> list[Sums]:
        """The sums of every process. All processes must call this."""
        self.read()
        count, width = processes.world_size(), _WIDTH * len(self.tasks)
        slots = [0.0] * (count * width)
        own = [x for task in self.tasks for x in self.sums.get(task, [0.0] * _WIDTH)]
        slots[processes.rank() * width : (processes.rank() + 1) * width] = own
        slots = processes.all_reduce_sum(slots)
        rows = [slots[i * width : (i + 1) * width] for i in range(count)]
        parts = [{t: row[_WIDTH * n : _WIDTH * (n + 1)] for n, t in enumerate(self.tasks)} for row in rows]
        return [{task: sums for task, sums in part.items() if sums[1]} for part in parts]

    def totals(self) -> Sums:
        """The sums over all processes; tasks without tokens are left out. All processes must call this."""
        parts = self.per_process()
        return {
            task: [sum(part[task][i] for part in parts if task in part) for i in range(_WIDTH)]
            for task in self.tasks
            if any(task in part for part in parts)
        }

    def restore(self, parts: Iterable[Mapping[str, Iterable[float]]]) -> None:
        """Adds the sums of some processes, as `per_process` gave them for a checkpoint.

        Checkpoints of older versions lack the sentence pairs: their number is then nan.
        """
        for part in parts:
            for task, saved in part.items():
                numbers = [*saved]
                if len(numbers) == 2:
                    numbers.append(math.nan)
                entry = self.sums.get(task, [0.0] * _WIDTH)
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
            values = torch.stack([nll for _, nll, *_ in self.unread]).tolist()
            for (task, _, tokens, pairs), nll in zip(self.unread, values, strict=True):
                entry = self.sums.setdefault(task, [0.0] * _WIDTH)
                for i, number in enumerate((nll, tokens, pairs)):
                    entry[i] += number
            self.unread = []
