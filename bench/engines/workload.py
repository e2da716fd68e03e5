"""What is trained: the trainer's models on batches of random tokens, with sentences of K tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cats.nmt.config.schema import Model
from cats.nmt.config.toml import read_preset
from cats.nmt.data.batch import Batch, collate
from cats.nmt.model.loss import token_losses
from cats.nmt.model.transformer import Transformer
from cats.nmt.training.losses import autocast

TASKS = (2, 8, 32, 92)
SMOOTHING = 0.1
FIRST_ID, START = 4, 1  # ids below FIRST_ID are padding, start and the like

TokenLoss = Callable[[Tensor, Tensor], Tensor]  # (logits (N, V), targets (N,)) -> losses (N,)


@dataclass(frozen=True)
class Size:
    """A model with its batches, which are the same for every K.

    lengths: the shortest and the longest sentence, in tokens. tasks: the K that are measured. thorough: whether
    everything is measured with every K; otherwise contenders without a target are measured with one K, or not at all.
    """

    name: str
    model: Model
    vocab_size: int
    sentences: int
    lengths: tuple[int, int]
    tasks: tuple[int, ...] = TASKS
    precision: str = "fp32"
    thorough: bool = False


def cpu() -> list[Size]:
    """Models for one thread of a CPU, on batches of about 700 target tokens, nearly as in the demo."""
    tiny, small = read_preset("tiny"), read_preset("small")
    wide = replace(tiny.model, d_model=512, heads=8, ffn=1024, encoder_layers=1, decoder_layers=1)
    shape = {"sentences": 96, "lengths": (4, 11)}
    return [
        Size("demo", tiny.model, tiny.tokenizer.vocab_size, thorough=True, **shape),
        Size("small", small.model, small.tokenizer.vocab_size, **shape),
        Size("d=512", wide, 2000, tasks=(8, 92), **shape),
    ]


def gpu() -> list[Size]:
    """The presets ted and base in bf16, on batches of about 32,000 target tokens."""
    ted, base = read_preset("ted"), read_preset("base")
    shape = {"sentences": 1067, "lengths": (10, 50), "precision": "bf16"}
    return [
        Size("ted", ted.model, 8 * ted.tokenizer.vocab_size, **shape),  # a vocabulary for each of eight languages
        Size("base", base.model, base.tokenizer.vocab_size, **shape),
    ]


def ours(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of the trainer."""
    return token_losses(logits, targets, SMOOTHING)[0]


def eager(logits: Tensor, targets: Tensor) -> Tensor:
    """The same loss by torch's own function, for what cannot run through a function written in Python.

    torch spreads the smoothing over all V tokens, the trainer over the V - 1 wrong ones.
    """
    count = logits.shape[-1]
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=SMOOTHING * count / (count - 1))


class Workload:
    """One training: a model, AdamW and a batch with sentences of K tasks. The same arguments give the same numbers.

    Attributes:
        source_ids, target_ids, sentence_ids: the task of every source token, target token and sentence, in the order of
            the batch; (M,), (N,) and (B,) int64. The tasks come one after another, as in the trainer.
    """

    def __init__(self, size: Size, tasks: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.tasks, self.precision = tasks, size.precision
        torch.manual_seed(0)
        self.model = model(size).to(device, dtype)
        self.base = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        rng = np.random.default_rng(0)
        low, high = size.lengths
        sources, targets = (
            [rng.integers(FIRST_ID, size.vocab_size, n).tolist() for n in rng.integers(low, high + 1, size.sentences)]
            for _ in range(2)
        )
        task = [i * tasks // size.sentences for i in range(size.sentences)]
        self._batch = self._collated(sources, targets, device)
        self._batches = []
        for n in range(tasks):
            rows = [i for i in range(size.sentences) if task[i] == n]
            self._batches.append(self._collated([sources[i] for i in rows], [targets[i] for i in rows], device))
        self.sentence_ids = torch.tensor(task, device=device)
        self.source_ids, self.target_ids = (
            self.sentence_ids.repeat_interleave(torch.tensor([len(row) for row in rows], device=device))
            for rows in (sources, targets)
        )
        self._counts = self.target_ids.bincount().tolist()
        self._shares = 1.0 / (tasks * self.target_ids.bincount().to(dtype))[self.target_ids]

    @staticmethod
    def _collated(sources: list[list[int]], targets: list[list[int]], device: torch.device) -> Batch:
        return collate(sources, targets, [START] * len(targets), device=device)

    def token_losses(self, loss: TokenLoss = ours) -> Tensor:
        """The losses of the N target tokens, from one forward pass."""
        return self._losses(self._batch, loss)

    def task_losses(self, loss: TokenLoss = ours) -> list[Tensor]:
        """The K losses, which share a graph."""
        return [part.mean() for part in self.token_losses(loss).split(self._counts)]

    def separate_losses(self, loss: TokenLoss = ours) -> dict[int, Callable[[], Tensor]]:
        """{task: a callable that returns its loss, from a forward pass of its own}."""
        return {n: partial(self._mean, batch, loss) for n, batch in enumerate(self._batches)}

    def plain_step(self) -> None:
        """Plain training: one step with the mean of the K losses."""
        self.base.zero_grad()
        (self.token_losses() * self._shares).sum().backward()
        self.base.step()

    def _mean(self, batch: Batch, loss: TokenLoss) -> Tensor:
        return self._losses(batch, loss).mean()

    def _losses(self, batch: Batch, loss: TokenLoss) -> Tensor:
        with autocast(self.precision, batch.source.device):
            hidden = self.model.hidden(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
            logits = self.model.project(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return loss(logits, batch.target_out.flatten()[batch.target_cells])


def model(size: Size) -> Transformer:
    """The model with random parameters."""
    m = size.model
    options: dict[str, Any] = {name: getattr(m, name) for name in ("norm", "embedding_norm", "embeddings")}
    return Transformer(
        size.vocab_size,
        m.d_model,
        m.heads,
        m.ffn,
        m.encoder_layers,
        m.decoder_layers,
        m.dropout,
        attention_dropout=m.attention_dropout,
        activation_dropout=m.activation_dropout,
        **options,
    )
