"""The trusted pairs of the method target-projection: a part of the validation pairs, and their losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from cats.nmt.config.schema import Config
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.data.sampler import split_batch
from cats.nmt.errors import UserError
from cats.nmt.methods.target_projection import trusted_names
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes
from cats.nmt.training.batches import Part
from cats.nmt.training.loss_log import LossLog
from cats.nmt.training.losses import LazyLoss, TaskLosses
from cats.nmt.training.sharding import is_sharded
from cats.nmt.training.training_data import ValidationText

KEPT = 5  # one of so many validation pairs stays for validation


def split_validation(config: Config, validation: TokenDataset) -> tuple[TokenDataset, TokenDataset | None]:
    """(validation pairs, trusted pairs): with method.name = target-projection four fifths of them are trusted.

    The split depends on the order of the pairs only, so all runs on a corpus have the same.

    Raises:
        UserError: a task has fewer than two validation pairs, or the parameters are sharded.
    """
    if config.method.name != "target-projection":
        return validation, None
    if is_sharded(config.train):
        raise UserError("method.name = target-projection needs train.distributed = replicas")
    if few := [task for task, shard in validation.shards.items() if len(shard) < 2]:
        raise UserError(
            f"method.name = target-projection needs at least two validation pairs of each task that are no "
            f"longer than model.max_length; {', '.join(few)} {'has' if len(few) == 1 else 'have'} fewer"
        )
    places = {task: np.arange(len(shard)) % KEPT == 0 for task, shard in validation.shards.items()}
    names = trusted_names(validation.shards)
    return (
        validation.subset({task: (task, np.flatnonzero(kept)) for task, kept in places.items()}),
        validation.subset({names[task]: (task, np.flatnonzero(~kept)) for task, kept in places.items()}),
    )


def validation_text(config: Config, text: Mapping[str, ValidationText]) -> dict[str, ValidationText]:
    """The text of the pairs that ``split_validation`` leaves for validation."""
    if config.method.name != "target-projection":
        return dict(text)
    return {task: replace(each, pairs=each.pairs[::KEPT]) for task, each in text.items()}


class TrustedLosses:
    """The loss of each trusted task on a new batch in every update. The batch is a function of (seed, step).

    Args:
        dataset: the trusted pairs.
    """

    def __init__(self, config: Config, model: Transformer, dataset: TokenDataset) -> None:
        self.dataset, self.seed, self.tokens = dataset, config.train.seed, config.sampling.batch_tokens
        sizes = {name: len(shard) for name, shard in dataset.shards.items()}
        self.mean_tokens = {name: dataset.target_tokens({name: np.arange(size)}) / size for name, size in sizes.items()}
        self.log = LossLog([])  # nobody reads it
        self.losses = TaskLosses(
            model,
            dataset,
            self.log,
            precision=config.train.precision,
            smoothing=config.train.label_smoothing,
            token_weights=None,
        )

    def of_update(self, step: int, tasks: Iterable[str]) -> dict[str, LazyLoss]:
        """{trusted task: its mean loss} for these tasks of a batch. Each process has its share of the pairs."""
        self.log.drop_unread()
        names = trusted_names(tasks)
        indices = {name: self._draw(step, name, self.tokens // len(names)) for name in names.values()}
        own = split_batch(indices, processes.world_size())[processes.rank()]
        return self.losses.separate(Part(own), self.losses.normalizers(indices), None)

    def _draw(self, step: int, name: str, tokens: int) -> np.ndarray:
        """Pairs with about so many target tokens, without replacement, at least one."""
        size = len(self.dataset.shards[name])
        random = np.random.default_rng([self.seed, 4, step, list(self.dataset.shards).index(name)])
        return random.choice(size, min(size, max(1, round(tokens / self.mean_tokens[name]))), replace=False)
