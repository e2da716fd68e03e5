"""`cats analyse`: measure the loss landscape of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cats.nmt.cli.parser import Parser
from cats.nmt.screen import doing

SUMMARY = "measure the loss landscape of a run: curvature of each language, alignment of their gradients"
HELP = """\
Measure the loss landscape at the checkpoints of a run, whatever its method: for each task the top eigenvalue and the
trace of the Hessian of its loss; for each pair of tasks the similarity of their gradients by kind of layer, and how
much a step for one changes the loss of the other (interference). All checkpoints are measured on the same pairs.

The numbers are added to landscape.jsonl of the run. What it has already is not measured again. To have several
checkpoints, train with --set train.keep=N; or measure during the training, with --set train.analyse_every=N.

examples:
  cats analyse runs/NAME
  cats analyse runs/NAME --checkpoint step-300 step-600 --tasks az,tr --batches 4
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as printed by cats train")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="NAME",
        help="checkpoints to measure: best, last or step-N (default: all that the run kept, best and last)",
    )
    parser.add_argument(
        "--split", default="valid", metavar="{valid,train}", help="text that the losses are of (default: valid)"
    )
    parser.add_argument("--tasks", metavar="NAMES", help="only these tasks, such as az,tr (default: all)")
    parser.add_argument("--batches", type=int, default=1, metavar="N", help="batches of each task (default: 1)")
    parser.add_argument(
        "--batch-tokens", type=int, default=500, metavar="N", help="target tokens of a batch, about (default: 500)"
    )
    parser.add_argument("--seed", type=int, default=1, help="chooses pairs and random vectors (default: 1)")
    parser.add_argument("--data", metavar="DIR", help="where the corpus of the run is now, if it was moved")


def run(args: argparse.Namespace) -> None:
    doing(f"loading {args.run}")
    from cats.nmt.scoring.landscape_tables import landscape_tables
    from cats.nmt.training.landscape import analyse

    records = analyse(
        Path(args.run),
        args.checkpoint,
        split=args.split,
        batches=args.batches,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        tasks=args.tasks.split(",") if args.tasks else (),
        data=args.data,
    )
    print(f"\n{landscape_tables(records)}")
    print(f"\n{args.run}: landscape.jsonl")
