"""`cats data inspect`: which tasks a corpus has, how large and how unequal they are."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cats.nmt.cli.options import add_corpus, corpus_config
from cats.nmt.cli.parser import Parser
from cats.nmt.config.schema import Config
from cats.nmt.data.layouts import DESCRIPTION
from cats.nmt.screen import doing

if TYPE_CHECKING:
    from cats.nmt.data.corpus import Corpus

SUMMARY = "show how many pairs of which languages a folder has, and what is left out"
HELP = (
    """\
Show which tasks a folder of parallel text has: numbers of pairs, lengths, imbalance, and what was left out and why.
These layouts can be read:

"""
    + DESCRIPTION
)


def add_arguments(parser: Parser) -> None:
    add_corpus(parser)


def run(args: argparse.Namespace) -> None:
    doing(f"reading {args.dir}")
    from cats.nmt.scoring.tables import aligned
    from cats.nmt.training.load_corpus import load_corpus

    corpus = load_corpus(corpus_config(args, Config()).data)
    print(aligned(table(corpus), left=2))
    sizes = list(corpus.sizes.values())
    uniform = math.log(len(sizes))
    print(
        f"\n{sum(sizes):,} training pairs; entropy of their distribution {entropy(sizes):.2f} nats, "
        f"of a uniform one {uniform:.2f}"
    )
    for notice in corpus.notices:
        print(notice)


def table(corpus: Corpus) -> list[list[str]]:
    """Return the rows of the table, header first: the tasks from small to large, then the zero-shot directions."""
    from cats.nmt.data.corpus import SPLITS
    from cats.nmt.scoring.scores import TITLES

    low = set(corpus.groups["lores"])
    rows = [["task", "group", *SPLITS, "characters/line", "longest"]]
    for task in sorted(corpus.tasks, key=lambda task: (len(task.train), task.name)):
        group = TITLES["lores" if task.name in low else "hires"]
        counts = [f"{len(getattr(task, split)):,}" for split in SPLITS]
        characters = longest = 0
        for pair in task.train if task.train.readable else ():
            characters += len(pair[1])
            longest = max(longest, *map(len, pair))
        lengths = [f"{characters / len(task.train):.1f}", f"{longest:,}"] if characters else ["", ""]
        rows.append([task.name, group, *counts, *lengths])
    return rows + [[task.name, "zero-shot", "", "", f"{len(task.test):,}", "", ""] for task in corpus.zero_shot]


def entropy(sizes: Sequence[int]) -> float:
    """Return the entropy, in nats, of the distribution of the pairs over the tasks."""
    total = sum(sizes)
    return sum(size / total * math.log(total / size) for size in sizes)
