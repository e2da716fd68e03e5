"""Loads the corpus, the tokenizer and the tokens of a run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cats.nmt.config.schema import Config
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.data.encode import EncodingSettings, LengthFilter, Pairs, encode_tasks, kept_pairs
from cats.nmt.data.groups import task_groups
from cats.nmt.data.monolingual import VALIDATION_SEED, CorruptedLines
from cats.nmt.data.prepare import training_tokens
from cats.nmt.data.shards import Shard
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model.decode import LengthLimit
from cats.nmt.training import processes, warmstart
from cats.nmt.training.load_corpus import load_corpus
from cats.nmt.training.origin import Origin
from cats.nmt.training.run import RunDirectory

COMPILED_MULTIPLE = 8  # with train.compile rows are padded to a multiple of this length, for fewer shapes to compile


@dataclass(frozen=True)
class ValidationText:
    """The text of the validation pairs of a task, without those that were left out.

    source, target: its two languages. limit: how long translations may be.
    """

    source: str
    target: str
    pairs: Pairs
    limit: LengthLimit


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained and validated on.

    validation_text: {task: the text of its pairs in `validation`}; empty without `train.validate_bleu`.
    origin: what checkpoints record about it.
    """

    tokenizer: Tokenizer
    training: TokenDataset
    validation: TokenDataset
    validation_text: dict[str, ValidationText]
    origin: Origin

    @property
    def tasks(self) -> list[str]:
        return list(self.training.shards)

    @property
    def without_validation(self) -> list[str]:
        """The tasks without validation pairs."""
        return [task for task, shard in self.validation.shards.items() if not len(shard)]

    @property
    def why_without(self) -> str:
        """Why the tasks without validation pairs have none."""
        if any(self.origin.corpus[task][1] for task in self.without_validation):
            return "all were left out as too long; raise model.max_length"
        return "the corpus has none"


def load_training_data(
    config: Config, run: RunDirectory, device: torch.device, *, started_with: Origin | None, quiet: bool
) -> TrainingData:
    """Reads and encodes the corpus. With several processes, the main one does it first and the others use its files.

    Args:
        started_with: what the resumed run was started with: its corpus must be the same, and the tokenizer is that of
            the directory `run`. None for a new run.
        quiet: print no notices about the corpus.

    Raises:
        UserError: unusable data or settings, or settings that differ between the processes.
    """
    new = started_with is None
    encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
    with processes.main_first():
        if started_with is None:
            corpus = load_corpus(config.data, quiet=quiet)
        else:
            corpus = run.load_corpus(config, started_with, quiet=quiet)
        task_groups(corpus.sizes, config.evaluate)  # an unknown name in [evaluate] is an error now, not after training
        directions = {task.name: (task.source, task.target) for task in corpus.tasks}
        if new and not config.train.init_from:  # the tags of an earlier run were checked when it started
            _check_tags(encoding.tags, {target for _, target in directions.values()})
        if started_with is not None:
            known: Tokenizer | None = run.load_tokenizer(config.tokenizer)
        else:
            known = warmstart.initial_tokenizer(corpus, config, quiet=quiet)
        encoded = training_tokens(corpus, encoding, tokenizer=known, quiet=quiet)
    tokenizer = encoded.tokenizer
    settings = [config.model, config.sampling, config.method, config.train]
    origin = Origin.of(config, corpus, tokenizer)
    if not processes.equal_text(f"{origin.digest} {origin.tokenizer} {settings}"):
        raise UserError("the processes have different text or settings; give all of them the same")
    most = config.data.valid_pairs or None
    valid_pairs = {task.name: list(task.valid)[:most] for task in corpus.tasks}
    # data.max_ratio cleans the training text. It must not choose what the model is judged on: runs that differ in it
    # are compared by their validation.
    short_enough = LengthFilter(encoding.max_length)
    validation = encode_tasks(corpus.tasks, valid_pairs, tokenizer, short_enough)
    if not quiet:
        counts = [
            f"{task}: {count} {split} pairs left out, {reason}"
            for split, part in (("training", encoded.left_out), ("validation", validation.left_out))
            for task, reasons in part.items()
            for reason, count in reasons.items()
        ]
        for notice in [*corpus.notices, *counts]:
            print(notice, file=sys.stderr)
    lines = {task.name for task in corpus.tasks if task.source == task.target}
    if lines and not tokenizer.sentinels:
        raise UserError(
            f"{', '.join(sorted(lines))}: language modelling needs a tokenizer with sentinels; "
            "train one with these tasks in data.tasks, in a new run or a new prepared folder"
        )

    def corrupted(shards: Mapping[str, Shard], seed: int) -> dict[str, Shard]:
        """The shards with lost spans in those of language modelling."""
        sentinels = tokenizer.sentinels
        return {n: CorruptedLines.of(s, sentinels, seed) if n in lines else s for n, s in shards.items()}

    multiple = COMPILED_MULTIPLE if config.train.compile else 1
    training = corrupted(encoded.shards, config.train.seed)
    training_set = TokenDataset(training, directions, tokenizer, device, multiple=multiple)
    limits = {
        task: LengthLimit.of_pairs(lengths) for task, lengths in training_set.lengths().items() if task not in lines
    }
    validation_text = {
        task: ValidationText(*directions[task], kept, limit)
        for task, limit in limits.items()
        if config.train.validate_bleu
        and (kept := kept_pairs(valid_pairs[task], tokenizer, directions[task], short_enough))
    }
    return TrainingData(
        tokenizer,
        training_set,
        TokenDataset(corrupted(validation.shards, VALIDATION_SEED), directions, tokenizer, device),
        validation_text,
        dataclasses.replace(origin, limits={task: [*limit] for task, limit in limits.items()}),
    )


def _check_tags(tags: Tags, targets: set[str]) -> None:
    """Refuses tags that do not tell the model which of several languages to translate into."""
    if len(targets) > 1 and not (tags.target or (tags.source != "none" and tags.of == "target")):
        raise UserError(
            "nothing tells the model which language to translate into; set tokenizer.source_tag to prepend and "
            "tokenizer.tag_of to target, or tokenizer.target_tag to true"
        )
