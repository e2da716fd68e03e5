"""`cats compare`: train several methods with several seeds and compare them."""

from __future__ import annotations

import argparse

from cats.nmt.cli.parser import Parser

SUMMARY = "train several methods with several seeds on one corpus, and write one table"
HELP = """\
Train several methods with several seeds on the same corpora, all with the same budget, and write one table and one
picture. After an interruption, the same command continues.
"""


def add_arguments(parser: Parser) -> None:
    from cats.nmt.scoring import compare

    compare.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from cats.nmt.scoring import compare

    compare.main(args)
