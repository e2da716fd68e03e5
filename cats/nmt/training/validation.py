"""The validation loss of every task."""

from __future__ import annotations

from cats.nmt.data.dataset import TokenDataset
from cats.nmt.model.loss import line_batches, line_nll
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes


def validation_nll(
    model: Transformer, dataset: TokenDataset, batch_tokens: int, *, in_step: bool = False
) -> dict[str, float]:
    """{task: negative log likelihood in nats per target token}, without label smoothing.

    Tasks without validation pairs are left out. Each process computes its share of the lines.

    Args:
        batch_tokens: target tokens, padding included, in one forward pass.
        in_step: whether the forward passes of the processes wait for each other, as with sharded parameters. Then all
            make the same number: those with fewer compute lines again.
    """
    tasks = [task for task, shard in dataset.shards.items() if len(shard)]
    size = processes.world_size()
    sums: list[float] = []
    for task in tasks:
        sources, targets = dataset.rows(task)
        shares = [(sources[i::size], targets[i::size]) for i in range(size)]
        start = dataset.starts[task]
        own = shares[processes.rank()]
        sums += line_nll(model, *own, start=start, batch_tokens=batch_tokens).sum(0).tolist()
        if in_step:
            passes = [len(line_batches(*share, batch_tokens)) for share in shares]
            for _ in range(max(passes) - passes[processes.rank()]):
                line_nll(model, sources[:1], targets[:1], start=start, batch_tokens=batch_tokens)
    sums = processes.all_reduce_sum(sums)
    return {task: nats / count for task, nats, count in zip(tasks, sums[::2], sums[1::2], strict=True)}
