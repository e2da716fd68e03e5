"""The losses of the tasks in a batch, as `optimizer.backward` takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cats
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.errors import UserError
from cats.nmt.model.loss import token_losses
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes
from cats.nmt.training.batches import Indices, Part
from cats.nmt.training.loss_log import LossLog

LazyLoss = Callable[[], Tensor]  # computes a loss when it is called, so that one graph at a time is in memory
Losses = Mapping[str, LazyLoss] | Mapping[str, tuple[LazyLoss, LazyLoss]]  # {task: its loss}


@dataclass(frozen=True)
class TokenLosses:
    """The losses of all tasks from one forward pass. L_n is the sum of the entries of task n.

    Attributes:
        losses: returns a loss for each target token, (target tokens,).
        targets: the index of the task of each target token.
        rows: the same of each source token, and of each sentence: the rows of the other layers. All int64 on the CPU.
    """

    losses: LazyLoss
    targets: Tensor
    rows: tuple[Tensor, Tensor]


class TaskLosses:
    """Computes the loss of every task: label-smoothed cross entropy, summed over tokens and divided by a normalizer.

    Args:
        log: gets the summed nll and the numbers of target tokens and of sentence pairs of every loss that is computed.
        precision: `train.precision`. smoothing: `train.label_smoothing`.
        token_weights: {task: how much a token of it counts}; see ``normalizers``.
        mixed: changes the loss of each token, before it is divided; see ``SelfDistillation.mixed``.
    """

    def __init__(
        self,
        model: Transformer,
        dataset: TokenDataset,
        log: LossLog,
        *,
        precision: str,
        smoothing: float,
        token_weights: Mapping[str, float] | None,
        mixed: Callable[[Tensor, Tensor, Part, list[int]], Tensor] | None = None,
    ) -> None:
        self.model, self.dataset, self.log = model, dataset, log
        self.precision, self.smoothing, self.token_weights = precision, smoothing, token_weights
        self.mixed = mixed
        self.index = {task: n for n, task in enumerate(dataset.shards)}

    def normalizers(self, indices: Indices) -> dict[str, float]:
        """{task: number of target tokens per process} of a whole batch.

        Each part's loss is divided by this number. The optimizer sums over the parts and takes the mean over the
        processes. The result is the mean over the task's tokens. With `token_weights` the sum of the tasks' losses is
        the weighted mean over all tokens of the batch instead.
        """
        count = processes.world_size()
        result = {task: self.dataset.target_tokens({task: rows}) / count for task, rows in indices.items()}
        if self.token_weights is None:
            return result
        total = sum(self.token_weights[task] * number for task, number in result.items())
        return {task: total / self.token_weights[task] for task in result}

    def joint(self, part: Part, normalizers: Mapping[str, float], scales: Mapping[str, float] | None) -> TokenLosses:
        """The losses of all tasks in one forward pass. The part may be empty. scales: see ``separate``."""
        tasks = np.array([self.index[task] for task in part.indices], dtype=np.int64)
        counts = [
            (len(rows), self.dataset.source_tokens(task, rows), self.dataset.target_tokens({task: rows}))
            for task, rows in part.indices.items()
        ]
        sentences, sources, targets = (
            torch.from_numpy(tasks.repeat(np.array(each, dtype=np.int64)))
            for each in (zip(*counts, strict=True) if counts else ((), (), ()))
        )
        return TokenLosses(self._lazy(part, normalizers, scales), targets, (sources, sentences))

    def separate(
        self, part: Part, normalizers: Mapping[str, float], scales: Mapping[str, float] | None
    ) -> dict[str, LazyLoss]:
        """{task: loss}, each from a forward pass of its own.

        Args:
            scales: {task: number that its gradient, but not its loss, is multiplied by}. None: 1 for all.
        """
        parts = {task: Part({task: rows}, part.step, uncounted=part.uncounted) for task, rows in part.indices.items()}
        return {task: self._total(each, normalizers, scales) for task, each in parts.items()}

    def two_halves(self, indices: Indices, parts: int, step: int) -> list[dict[str, tuple[LazyLoss, LazyLoss]]]:
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
                first, second = (
                    self._total(Part({task: half[i::count]}, step), {task: n})
                    for half, n in zip(halves, tokens, strict=True)
                )
                result[i][task] = first, second
        if not result[0]:
            raise UserError("method.cross_batch needs two sentences of a task in a batch; raise sampling.batch_tokens")
        return [losses for losses in result if losses]

    def _total(
        self, part: Part, normalizers: Mapping[str, float], scales: Mapping[str, float] | None = None
    ) -> LazyLoss:
        losses = self._lazy(part, normalizers, scales)
        return lambda: losses().sum()

    def _lazy(self, part: Part, normalizers: Mapping[str, float], scales: Mapping[str, float] | None) -> LazyLoss:
        """A function that returns the loss of each target token, divided by the normalizer of its task.

        Some engines call it twice. It logs only once.
        """
        if not part.indices:
            return lambda: torch.zeros(0, device=self.dataset.device, requires_grad=True)
        tokens = {task: self.dataset.target_tokens({task: rows}) for task, rows in part.indices.items()}
        divisors = np.array([math.inf if task in part.uncounted else normalizers[task] for task in tokens])
        factors = None if scales is None else np.array([scales.get(task, 0.0) for task in tokens])
        logged = False

        def losses() -> Tensor:
            nonlocal logged
            batch = self.dataset.batch(part.indices, part.step) if part.built is None else part.built
            with autocast(self.precision, self.dataset.device):
                logits = self.model.logits(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
            targets = batch.target_out.flatten()[batch.target_cells]
            logits, counts = logits.float(), list(tokens.values())
            smoothed, nll = token_losses(logits, targets, self.smoothing)
            if self.mixed is not None:
                smoothed = self.mixed(smoothed, logits, part, counts)
            if self.model.routing is not None:
                # In the loss of every token it is once in each task's mean, and once in the mean over all tokens.
                smoothed = smoothed + self.model.routing.budget_loss()
            if not logged:
                for task, each in zip(tokens, nll.split(counts), strict=True):
                    if task not in part.uncounted:
                        self.log.add(task, each.sum(), tokens[task], len(part.indices[task]))
                logged = True

            def per_token(values: np.ndarray) -> Tensor:
                return torch.from_numpy(values.repeat(counts)).to(smoothed.device, smoothed.dtype, non_blocking=True)

            divided: Tensor = smoothed / per_token(divisors)
            if factors is None:
                return divided
            scaled = divided * per_token(factors)
            return scaled + (divided - scaled).detach()  # its value is `divided`, its gradient that of `scaled`

        return losses


def add_gradients(
    optimizer: cats.MultiTask, parts: Sequence[Losses | TokenLosses], scaler: torch.amp.GradScaler
) -> None:
    """Adds the combined gradients of all parts of a batch to those of the parameters."""
    for i, losses in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(losses, TokenLosses):
            with cats.engines.rows(*losses.rows):
                optimizer.backward(losses.losses, tasks=losses.targets, reduction="sum", scaler=scaler, last=last)
        else:
            optimizer.backward(losses, scaler=scaler, last=last)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass with `train.precision`. Validation and translation stay in float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
