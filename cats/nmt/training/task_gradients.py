"""Gradients of single tasks at the current parameters, for rules that compare training and validation data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from cats.nmt.data.dataset import TokenDataset
from cats.nmt.model.loss import token_losses
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes

Indices = Mapping[str, np.ndarray]


class TaskGradients:
    """Implements ``cats.nmt.methods.sampling_rule.Gradients``, in float32 and without dropout.

    It changes nothing of the training: no random state is used, p.grad is not touched, nothing is logged. The batches
    are a function of (seed, step).

    Args:
        training, validation: the pairs of every task; each task has some of both.
        tokens: the most target tokens of a batch.
        step: the number of updates so far, which chooses the batches.
    """

    def __init__(
        self,
        model: Transformer,
        training: TokenDataset,
        validation: TokenDataset,
        *,
        smoothing: float,
        tokens: int,
        seed: int,
        step: int,
    ) -> None:
        self.model, self.smoothing, self.tokens, self.seed, self.step = model, smoothing, tokens, seed, step
        self.data = training, validation
        self.tasks = list(training.shards)
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def training(self, task: int) -> list[Tensor]:
        return self._gradient(self.data[0], self._draw(0, task, self.tokens), self.step)

    def validation(self, task: int) -> list[Tensor]:
        return self._gradient(self.data[1], self._draw(1, task, self.tokens))

    def validation_sum(self) -> list[Tensor]:
        share = self.tokens // len(self.tasks)
        drawn = [self._draw(1, task, share) for task in range(len(self.tasks))]
        return self._gradient(self.data[1], {task: rows for part in drawn for task, rows in part.items()})

    @contextmanager
    def moved(self, direction: list[Tensor], distance: float) -> Iterator[None]:
        before = [p.detach().clone() for p in self.parameters]
        try:
            with torch.no_grad():
                for p, d in zip(self.parameters, direction, strict=True):
                    p.add_(d, alpha=distance)
            yield
        finally:
            with torch.no_grad():
                for p, saved in zip(self.parameters, before, strict=True):
                    p.copy_(saved)

    def agreed(self, numbers: np.ndarray) -> np.ndarray:
        own = numbers if processes.is_main() else np.zeros_like(numbers)
        return np.array(processes.all_reduce_sum(own.tolist()))

    def _draw(self, split: int, task: int, tokens: int) -> dict[str, np.ndarray]:
        """Pairs of a task with at most so many target tokens, without replacement; at least one pair."""
        name, dataset = self.tasks[task], self.data[split]
        size, offsets = len(dataset.shards[name]), dataset.shards[name].offsets
        random = np.random.default_rng([self.seed, 3, self.step, split, task])
        chosen = random.choice(size, min(size, max(1, tokens)), replace=False)  # each has a token at least
        lengths = offsets[2 * chosen + 2] - offsets[2 * chosen + 1] + 1
        return {name: chosen[: max(1, int(np.searchsorted(lengths.cumsum(), tokens, side="right")))]}

    def _gradient(self, dataset: TokenDataset, indices: Indices, step: int = 0) -> list[Tensor]:
        """Of the sum of the tasks' mean losses, with label smoothing, on the pairs as they are in this update."""
        batch = dataset.batch(indices, step)
        was_training = self.model.training
        self.model.eval()
        try:
            logits = self.model.logits(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
        finally:
            self.model.train(was_training)
        smoothed, _ = token_losses(logits.float(), batch.target_out.flatten()[batch.target_cells], self.smoothing)
        counts = [dataset.target_tokens({task: rows}) for task, rows in indices.items()]
        loss = torch.stack([part.mean() for part in smoothed.split(counts)]).sum()
        return list(torch.autograd.grad(loss, self.parameters, materialize_grads=True))
