"""From text to tokens, in memory."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cats.nmt.config import schema
from cats.nmt.data.corpus import Task
from cats.nmt.data.shards import Shard, pack
from cats.nmt.data.tokenizer import Tags, Tokenizer

Pairs = list[tuple[str, str]]  # (source line, target line)


@dataclass(frozen=True)
class LengthFilter:
    """Which pairs are kept for training.

    max_length: the maximum number of tokens on either side, tags and end included.
    max_ratio: the largest ratio of the longer side to the shorter one, in pieces; 0: no limit.
    """

    max_length: int
    max_ratio: float = 0.0

    def reason(self, source: int, target: int, tags: int) -> str:
        """Why a pair is left out, or "" if it is kept.

        Args:
            source, target: pieces on each side.
            tags: tokens that are added to the source.
        """
        if source + tags > self.max_length or target + 1 > self.max_length:
            return f"longer than {self.max_length} tokens"
        if self.max_ratio and max(source, target) > self.max_ratio * min(source, target):
            return f"one side more than {self.max_ratio:g} times as long as the other"
        return ""

    def advice(self, reasons: Collection[str]) -> str:
        """The settings to raise so that pairs are kept that were left out for these reasons."""
        too_long = self.reason(self.max_length, self.max_length, 1)
        settings = {"model.max_length": too_long in reasons, "data.max_ratio": bool(set(reasons) - {too_long})}
        return " and ".join(name for name, needed in settings.items() if needed) or "model.max_length"


@dataclass(frozen=True)
class EncodingSettings:
    """The settings that the tokens of a corpus depend on: two sections, and ``model.max_length``."""

    data: schema.Data
    tokenizer: schema.Tokenizer
    max_length: int

    @property
    def tags(self) -> Tags:
        return Tags.from_settings(self.tokenizer)

    @property
    def length_filter(self) -> LengthFilter:
        return LengthFilter(self.max_length, self.data.max_ratio)

    def values(self) -> dict[str, Any]:
        """{"section.key": value} of the settings that change the tokens. A prepared folder records them."""
        tokenizer = dataclasses.asdict(self.tokenizer)
        del tokenizer["target_tag"]  # it replaces the start token, so it changes no length
        return {
            **{f"tokenizer.{name}": value for name, value in tokenizer.items()},
            "model.max_length": self.max_length,
            **{f"data.{name}": getattr(self.data, name) for name in ("source", "direction", "max_ratio")},
        }


@dataclass(frozen=True)
class EncodedCorpus:
    """The tokens of a corpus, in memory or memory-mapped.

    shards: {task: its pairs}. left_out: {task: {reason: the number of pairs that were left out for it}}.
    """

    tokenizer: Tokenizer
    shards: dict[str, Shard]
    left_out: dict[str, dict[str, int]]


def encode_pairs(
    pairs: Pairs, tokenizer: Tokenizer, direction: tuple[str, str], length_filter: LengthFilter
) -> tuple[Shard, Counter[str]]:
    """Encodes the pairs of one task.

    Args:
        direction: (source language, target language).

    Returns:
        The pairs that were kept, and the number of pairs left out by reason.
    """
    left_out: Counter[str] = Counter()
    kept: list[list[int]] = []
    for ids, reason in _filtered(pairs, tokenizer, direction, length_filter):
        if reason:
            left_out[reason] += 1
        else:
            kept += ids
    return pack(kept, tokenizer.vocab_size), left_out


def kept_pairs(pairs: Pairs, tokenizer: Tokenizer, direction: tuple[str, str], length_filter: LengthFilter) -> Pairs:
    """The text of the pairs that ``encode_pairs`` keeps, in the same order."""
    reasons = (reason for _, reason in _filtered(pairs, tokenizer, direction, length_filter))
    return [pair for pair, reason in zip(pairs, reasons, strict=True) if not reason]


def _filtered(
    pairs: Pairs, tokenizer: Tokenizer, direction: tuple[str, str], length_filter: LengthFilter
) -> Iterator[tuple[tuple[list[int], list[int]], str]]:
    """The ids of the pieces of both sides of every pair, and why it is left out, or ""."""
    source, target = direction
    before, after = tokenizer.frame(source, target)
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    for ids in zip(tokenizer.encode(sources, source), tokenizer.encode(targets, target), strict=True):
        yield ids, length_filter.reason(len(ids[0]), len(ids[1]), len(before) + len(after))


def encode_tasks(
    tasks: Iterable[Task], pairs: Mapping[str, Pairs], tokenizer: Tokenizer, length_filter: LengthFilter
) -> EncodedCorpus:
    """Encodes {task: pairs} for all tasks."""
    found = {t.name: encode_pairs(pairs[t.name], tokenizer, (t.source, t.target), length_filter) for t in tasks}
    return EncodedCorpus(
        tokenizer,
        {task: shard for task, (shard, _) in found.items()},
        {task: dict(left_out) for task, (_, left_out) in found.items() if left_out},
    )
