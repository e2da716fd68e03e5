"""`cats data prepare`: turn a corpus into tokens once, for later training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cats.nmt.cli.options import add_corpus, add_settings, base_config, corpus_config, require_trainer
from cats.nmt.cli.parser import Parser
from cats.nmt.config.toml import apply_overrides
from cats.nmt.errors import Stopped, UserError, command
from cats.nmt.screen import doing

SUMMARY = "turn text into tokens once, before training"
HELP = """\
Train the tokenizer and encode the text once, with several processes. The result is a folder to train on, here or on
another machine. After an interruption, the same command continues. cats train does the same for a large folder of
text, and keeps the result in $CATS_CACHE or in the user's cache folder.

examples:
  cats data prepare my/corpus --out prepared --preset base
  cats train --data prepared --preset base
"""


def add_arguments(parser: Parser) -> None:
    add_corpus(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder, or an unfinished one to continue")
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="number of processes (default: one per core)"
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> None:
    require_trainer("preparing")
    doing(f"reading {args.dir}")
    from cats.nmt.data.encode import EncodingSettings
    from cats.nmt.data.prepare import prepare
    from cats.nmt.data.prepared import read_prepared
    from cats.nmt.training import warmstart
    from cats.nmt.training.load_corpus import load_corpus

    if args.processes < 0:
        raise UserError(f"--processes must be at least 0, not {args.processes}")
    config = apply_overrides(corpus_config(args, base_config(args)), args.overrides or [])
    out = Path(args.out)
    corpus = load_corpus(config.data)
    encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
    try:
        tokenizer = warmstart.initial_tokenizer(corpus, config)
        prepare(corpus, encoding, out, tokenizer=tokenizer, processes=args.processes)
    except KeyboardInterrupt:
        print("cats: stopped; the same command continues from here", file=sys.stderr)
        raise Stopped from None
    found = read_prepared(out, encoding)
    for task, shard in found.shards.items():
        reasons = "".join(f", {count:,} {reason}" for reason, count in found.left_out.get(task, {}).items())
        print(f"{task}: {len(shard):,} pairs, {len(shard.tokens):,} tokens{reasons}")
    for notice in corpus.notices:
        print(notice)
    print(f"Train on it: {command('train', '--data', out, *settings_options(args))}")


def settings_options(args: argparse.Namespace) -> list[str]:
    """Return the options for settings as the user gave them."""
    names = [name for name in ("preset", "config", "init_from") if getattr(args, name)]
    options = [word for name in names for word in (f"--{name.replace('_', '-')}", getattr(args, name))]
    return options + [word for override in args.overrides or [] for word in ("--set", override)]
