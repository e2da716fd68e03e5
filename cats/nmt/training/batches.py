"""The batch of every update: drawn by the sampler, shared among the processes, built one update ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cats.nmt.config import schema
from cats.nmt.data.batch import Batch
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.data.sampler import Mixture, Sampler, split_batch
from cats.nmt.errors import UserError, unknown
from cats.nmt.training import processes

Indices = dict[str, np.ndarray]  # {task: indices of its sentence pairs}


@dataclass
class Part:
    """The pairs that go through the model together.

    step: the update, on which the lines of language modelling depend.
    built: their tensors, if they have been made in advance.
    uncounted: the tasks whose pair is only there so that all processes have the same tasks: its loss counts as 0.
    """

    indices: Indices
    step: int = 0
    built: Batch | None = None
    uncounted: frozenset[str] = frozenset()


@dataclass
class PrefetchedBatch:
    """The batch of one update.

    indices: the pairs of the whole batch, over all processes.
    parts: those of this process, in `train.accumulate` parts.
    """

    step: int
    indices: Indices
    parts: list[Part]


class Prefetcher:
    """Gives the batch of each update, and draws the next one while the device works on the current one.

    Args:
        accumulate: the number of parts of a batch.
        build_first: whether to build the tensors of the first part in advance. This does not help if tasks always go
            through the model one by one.
        everywhere: whether all processes need the same tasks in each part, as with sharded parameters.
    """

    def __init__(
        self, dataset: TokenDataset, sampler: Sampler, *, accumulate: int, build_first: bool, everywhere: bool = False
    ) -> None:
        self.everywhere = everywhere
        self.dataset, self.sampler = dataset, sampler
        self.accumulate, self.build_first = accumulate, build_first
        self.prefetched: PrefetchedBatch | None = None

    def take(self, step: int) -> PrefetchedBatch:
        """The batch of an update."""
        batch, self.prefetched = self.prefetched, None
        return batch if batch is not None and batch.step == step else self._make(step, self.sampler.batch(step))

    def prefetch(self, step: int) -> None:
        """Draws and builds the batch of an update in advance."""
        self.prefetched = self._make(step, self.sampler.batch(step))

    def largest(self, step: int) -> PrefetchedBatch:
        """The largest possible batch, to be used as the batch of an update."""
        return self._make(step, self.sampler.largest_batch())

    def _make(self, step: int, indices: Indices) -> PrefetchedBatch:
        shares = [split_batch(share, self.accumulate) for share in split_batch(indices, processes.world_size())]
        parts = [Part(part, step) for part in shares[processes.rank()]]
        if self.everywhere:
            parts = [_with_tasks(part, indices, [share[i] for share in shares]) for i, part in enumerate(parts)]
        if self.build_first and parts[0].indices:
            parts[0].built = self.dataset.batch(parts[0].indices, step)
        return PrefetchedBatch(step, indices, parts)


def _with_tasks(part: Part, indices: Indices, shares: list[Indices]) -> Part:
    """The part with a pair of each task that other processes have in their shares and this one does not."""
    tasks = [task for task in indices if any(task in share for share in shares)]
    filled = {task: part.indices.get(task, indices[task][:1]) for task in tasks}
    return Part(filled, part.step, uncounted=frozenset(tasks) - part.indices.keys())


def build_sampler(
    sampling: schema.Sampling, train: schema.Train, groups: Mapping[str, list[str]], dataset: TokenDataset
) -> Sampler:
    """The sampler of a run.

    Args:
        groups: {group: tasks}, which `train.pretrain` and `train.finetune` may name.

    Raises:
        UserError: `sampling.ratios`, `train.pretrain` or `train.finetune` do not fit the tasks of the corpus.
    """
    return Sampler(
        dataset.lengths(),
        mixture=_mixture(sampling, train, groups, list(dataset.shards)),
        batch_tokens=sampling.batch_tokens,
        seed=train.seed,
        tasks_per_update=sampling.tasks_per_update,
        padded=sampling.budget == "padded",
    )


def _mixture(
    sampling: schema.Sampling, train: schema.Train, groups: Mapping[str, list[str]], tasks: list[str]
) -> Mixture:
    """How often each task is drawn."""
    if sampling.ratios and len(sampling.ratios) != len(tasks):
        raise UserError(
            f"sampling.ratios has {len(sampling.ratios)} numbers, the corpus {len(tasks)} tasks "
            f"({', '.join(sorted(tasks))})"
        )
    return Mixture(
        sampling.temperature,
        sampling.temperature_end,
        sampling.ratios,
        sampling.unimax_epochs,
        train.steps,
        sampling.first_temperature,
        _named(train.pretrain, groups, tasks, "train.pretrain"),
        train.pretrain_steps,
        _named(train.finetune, groups, tasks, "train.finetune"),
    )


def _named(names: tuple[str, ...], groups: Mapping[str, list[str]], tasks: list[str], where: str) -> tuple[str, ...]:
    """The tasks that a setting names, itself or by their group."""
    found: list[str] = []
    for name in names:
        if name not in tasks and name not in groups:
            raise unknown("task", name, [*tasks, *groups], where=where)
        found += [name] if name in tasks else [task for task in groups[name] if task in tasks]
    if names and not found:
        raise UserError(f"{where} = {','.join(names)}: no task of the corpus is in this group; name tasks instead")
    return tuple(found)
