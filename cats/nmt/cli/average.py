"""`cats average`: the mean of the parameters of several checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from cats.nmt.cli.parser import Parser
from cats.nmt.errors import UserError
from cats.nmt.screen import doing

SUMMARY = "average the newest models of a run: often better than each of them"
HELP = """\
Average the parameters of several models and write the mean to checkpoints/average.pt of the run. The models are those
that the run kept while it trained with --set train.keep=N, or the given checkpoints.

examples:
  cats average runs/NAME --last 5
  cats evaluate runs/NAME --checkpoint average
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as printed by cats train")
    parser.add_argument(
        "--last", type=int, metavar="N", help="average only the N newest models (default: all that the run kept)"
    )
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="FILE",
        help="average these checkpoints instead, such as best.pt of several runs",
    )


def run(args: argparse.Namespace) -> None:
    doing(f"reading the models of {args.run}")
    from cats.nmt.training import checkpoint
    from cats.nmt.training.run import RunDirectory

    directory = RunDirectory(Path(args.run))
    directory.read_config()  # an error if it is no run
    if not directory.checkpoints.is_dir():
        raise UserError(f"{args.run} has no checkpoints; give the run itself")
    paths = [Path(file) for file in args.checkpoints or ()] or directory.kept_checkpoints()
    if args.last is not None:
        if args.checkpoints:
            raise UserError("--last and --checkpoints exclude each other; leave one of them out")
        if not 1 <= args.last <= max(1, len(paths)):
            raise UserError(f"--last {args.last}: {args.run} has kept {len(paths)} models")
        paths = paths[-args.last :]
    if not paths:
        raise UserError(f"{args.run} has kept no models: train with --set train.keep=5, or give --checkpoints")
    average = directory.checkpoint("average")
    checkpoint.save(average, checkpoint.average(paths))
    print(f"{average}: the mean of {', '.join(path.name for path in paths)}")
