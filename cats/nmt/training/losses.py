"""The losses of the tasks in a batch, as `optimizer.backward` takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cats.nmt.data.batch import Batch
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.errors import UserError
from cats.nmt.model.loss import token_losses
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes
from cats.nmt.training.batches import Indices, Part
from cats.nmt.training.loss_log import LossLog

LazyLoss = Callable[[], Tensor]  # computes the loss when it is called, so that one graph at a time is in memory
Losses = Mapping[str, Tensor] | Mapping[str, LazyLoss] | Mapping[str, tuple[LazyLoss, LazyLoss]]  # {task: loss}


class TaskLosses:
    """Computes the loss of every task: label-smoothed cross entropy, summed over tokens and divided by a normalizer.

    Args:
        log: gets the summed nll and the number of target tokens of every loss that is computed.
        precision: `train.precision`. smoothing: `train.label_smoothing`.
        over_all_tokens: see ``normalizers``.
    """

    def __init__(
        self,
        model: Transformer,
        dataset: TokenDataset,
        log: LossLog,
        *,
        precision: str,
        smoothing: float,
        over_all_tokens: bool,
    ) -> None:
        self.model, self.dataset, self.log = model, dataset, log
        self.precision, self.smoothing, self.over_all_tokens = precision, smoothing, over_all_tokens

    def normalizers(self, indices: Indices) -> dict[str, float]:
        """{task: number of target tokens per process} of a whole batch.

        Each part's loss is divided by this number. The optimizer sums over the parts and takes the mean over the
        processes. The result is the mean over the task's tokens. With `over_all_tokens` every task gets the number of
        tokens of all tasks. The sum of the tasks' losses is then the mean over all tokens of the batch.
        """
        count = processes.world_size()
        result = {task: self.dataset.target_tokens({task: rows}) / count for task, rows in indices.items()}
        return dict.fromkeys(indices, sum(result.values())) if self.over_all_tokens else result

    def joint(self, part: Part, normalizers: Mapping[str, float], *, log: bool = True) -> dict[str, Tensor]:
        """{task: loss} from one forward pass of all tasks."""
        tokens = {task: self.dataset.target_tokens({task: rows}) for task, rows in part.indices.items()}
        batch = self.dataset.batch(part.indices) if part.built is None else part.built
        with autocast(self.precision, self.dataset.device):
            sums = loss_sums(self.model, batch, tokens, self.smoothing)
        for task, (_, nll) in sums.items() if log else ():
            self.log.add(task, nll, tokens[task])
        return {task: smoothed / normalizers[task] for task, (smoothed, _) in sums.items()}

    def separate(self, part: Part, normalizers: Mapping[str, float]) -> dict[str, LazyLoss]:
        """{task: loss}, each from a forward pass of its own."""
        return {task: self._lazy(task, rows, normalizers[task]) for task, rows in part.indices.items()}

    def two_halves(self, indices: Indices, parts: int) -> list[dict[str, tuple[LazyLoss, LazyLoss]]]:
        """{task: losses of two independent halves of its pairs} for each part of a batch, for `method.cross_batch`.

        Each half has its own mean. A task with only one pair is left out.

        Raises:
            UserError: no task has two pairs.
        """
        result: list[dict[str, tuple[LazyLoss, LazyLoss]]] = [{} for _ in range(parts)]
        for task, rows in indices.items():
            halves = rows[::2], rows[1::2]
            tokens = [self.dataset.target_tokens({task: half}) for half in halves]
            count = min(parts, len(halves[1]))
            for i in range(count):
                first, second = (self._lazy(task, half[i::count], n) for half, n in zip(halves, tokens, strict=True))
                result[i][task] = first, second
        if not result[0]:
            raise UserError("method.cross_batch needs two sentences of a task in a batch; raise sampling.batch_tokens")
        return [losses for losses in result if losses]

    def _lazy(self, task: str, rows: np.ndarray, normalizer: float) -> LazyLoss:
        called = False

        def loss() -> Tensor:
            nonlocal called
            log, called = not called, True  # the optimizer may compute a loss again, when memory is short
            return self.joint(Part({task: rows}), {task: normalizer}, log=log)[task]

        return loss


def loss_sums(
    model: Transformer, batch: Batch, tokens: Mapping[str, int], smoothing: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """{task: (summed smoothed loss, summed nll)}, scalars in nats.

    Args:
        tokens: {task: number of target tokens}, in the order in which the batch holds the tasks.
    """
    hidden = model.hidden(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
    targets = batch.target_out.flatten()[batch.target_cells]
    smoothed, nll = token_losses(model.project(hidden).float(), targets, smoothing)
    counts = list(tokens.values())
    parts = zip(tokens, smoothed.split(counts), nll.detach().split(counts), strict=True)
    return {task: (s.sum(), n.sum()) for task, s, n in parts}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass with `train.precision`. Validation and translation stay in float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
