"""The validation loss of every task."""

from __future__ import annotations

from cats.nmt.data.dataset import TokenDataset
from cats.nmt.model.loss import line_nll
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes


def validation_nll(model: Transformer, dataset: TokenDataset, batch_tokens: int) -> dict[str, float]:
    """{task: negative log likelihood in nats per target token}, without label smoothing.

    Tasks without validation pairs are left out. Each process computes its share of the lines.

    Args:
        batch_tokens: target tokens, padding included, in one forward pass.
    """
    tasks = [task for task, shard in dataset.shards.items() if len(shard)]
    sums: list[float] = []
    for task in tasks:
        sources, targets = (side[processes.rank() :: processes.world_size()] for side in dataset.rows(task))
        start = dataset.starts[task]
        sums += line_nll(model, sources, targets, start=start, batch_tokens=batch_tokens).sum(0).tolist()
    sums = processes.all_reduce_sum(sums)
    return {task: nats / count for task, nats, count in zip(tasks, sums[::2], sums[1::2], strict=True)}
