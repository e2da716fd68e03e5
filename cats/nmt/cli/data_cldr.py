"""`cats data cldr`: write the built-in corpus as parallel text."""

from __future__ import annotations

import argparse
from pathlib import Path

from cats.nmt.cli.options import apply_options
from cats.nmt.cli.parser import Parser
from cats.nmt.config.schema import FIELDS, Config, Data
from cats.nmt.errors import UserError, command
from cats.nmt.screen import doing

SUMMARY = "write the built-in corpus as parallel text: train.en-xx.en, train.en-xx.xx, ..."
HELP = """\
Write the built-in corpus as parallel text, to look at it or to train another program on it. It consists of phrases of
the Unicode CLDR, in English and in each language of a set.
"""


def add_arguments(parser: Parser) -> None:
    default = Data()
    languages, sizes = (
        "{" + ",".join(FIELDS[f"data.{name}"].metadata["choices"]) + "}" for name in ("languages", "sizes")
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder to write to")
    parser.add_argument(
        "--languages", metavar=languages, help=f"set of target languages (default: {default.languages})"
    )
    parser.add_argument("--sizes", metavar=sizes, help=f"training pairs per language (default: {default.sizes})")
    parser.add_argument("--seed", metavar="S", help=f"random seed (default: {default.seed})")


def run(args: argparse.Namespace) -> None:
    doing("generating the built-in corpus")
    from cats.nmt.data.corpus_files import write_corpus

    data = apply_options(Config(), args, {name: f"data.{name}" for name in ("languages", "sizes", "seed")}).data
    out = Path(args.out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    from cats.nmt.data.cldr.generate import generate  # imported late because it needs Babel

    corpus = generate(data.languages, data.sizes, data.seed)
    write_corpus(corpus, out)
    pairs = ", ".join(f"{name} {size:,}" for name, size in corpus.sizes.items())
    for notice in corpus.notices:
        print(notice)
    print(f"{out}: training pairs {pairs}\nTrain on it: {command('train', '--data', out)}")
