"""`cats compare`: train several methods with several seeds and compare them."""

from __future__ import annotations

import argparse

from cats.nmt.cli.parser import Parser

SUMMARY = "several methods and seeds on one corpus, and one table"
HELP = """\
Train several methods with several seeds on the same corpora and budget, and write one table and one picture.
Killed or stopped, the same command goes on where it was.
"""


def add_arguments(parser: Parser) -> None:
    from cats.nmt.scoring import compare

    compare.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from cats.nmt.scoring import compare

    compare.main(args)
