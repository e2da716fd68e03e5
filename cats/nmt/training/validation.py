"""The validation loss of every task, and the BLEU and chrF of its translated validation lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from cats.nmt import quality
from cats.nmt.config import schema
from cats.nmt.data.corpus import evenly_spread
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.model.decode import translate
from cats.nmt.model.loss import line_batches, line_nll
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes
from cats.nmt.training.training_data import ValidationText

# The values of `train.best_metric`, with the one that every number is better than.
WORST = {"nll": math.inf, "bleu": -math.inf, "chrf": -math.inf}
SCORES = ("bleu", "chrf")


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value of `train.best_metric` is better than another one."""
    return value < than if metric == "nll" else value > than


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


def validation_scores(
    model: Transformer,
    tokenizer: Tokenizer,
    text: Mapping[str, ValidationText],
    lines: int,
    settings: schema.Decode,
) -> dict[str, dict[str, float]]:
    """{"bleu": {task: score}, "chrf": {task: score}} of greedy translations of some validation lines.

    The main process translates, and all get its scores. So they do not depend on the number of processes.

    Args:
        model: only that of the main process is used. No random numbers are drawn.
        lines: `train.validate_lines`.
        settings: what else than greedy search is asked of a translation, such as the longest line.
    """
    greedy = replace(settings, beam=1, sample=False)
    found = [0.0] * (len(SCORES) * len(text))
    if processes.is_main():
        found = []
        for name, task in text.items():
            pairs = evenly_spread(task.pairs, lines)
            references = [target for _, target in pairs]
            sources = [source for source, _ in pairs]
            output = translate(model, tokenizer, sources, task.source, task.target, greedy, limit=task.limit, task=name)
            metrics = quality.metrics(task.target)
            found += [metrics[name].corpus_score(output, [references]).score for name in SCORES]
    found = processes.all_reduce_sum(found)
    return {name: dict(zip(text, found[i :: len(SCORES)], strict=True)) for i, name in enumerate(SCORES)}
