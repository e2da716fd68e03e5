"""`cats compare`: train several methods with several seeds and compare them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli import grid
from cats.nmt.cli.parser import Parser
from cats.nmt.errors import unknown
from cats.nmt.screen import doing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cats.nmt.scoring.grid.runs import Run

SUMMARY = "train several methods with several seeds on one corpus, and write one table"
HELP = """\
Train several methods with several seeds on the same corpora, all with the same budget, and write tables and a picture.
After an interruption, the same command continues. A run that fails is stepped over. The tables show what is finished.

methods:
  T=3             plain token means, batches drawn at this temperature: any number, or inf
  tokens          the same, at the temperature of the settings; uniform: the mean over the tasks
  staged          T=1, then T=3 after a warm restart
  cats, ..        any method of cats train --method, all on the sampler of the settings
  T=3r, cats-r    the same with a warm restart after 35 % of the updates; cats-staged: with T=1 before it
  cats-fixed      the mean over time of the weights of cats as constants, from the run with the same seed

examples:
  cats compare --methods cats --seeds 4 5 6               cats and its controls
  cats compare --lr 1e-3 3e-3 6e-3 --trials 6 --seeds 4 5 settings are chosen on validation text first, with 6 trials
                                                          for every method; only the chosen ones are trained with seeds
  cats compare --variant slow:cats-r,method.alpha_lr=0.01 another method: cats-r with these settings
"""


def add_arguments(parser: Parser) -> None:
    from cats.nmt.scoring.grid.methods import CONTROLS, DEFAULT

    grid.add_corpora(parser, ["ted", "wmt"])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT),
        metavar="METHOD",
        help=f"methods, see above (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--controls",
        nargs="+",
        default=list(CONTROLS),
        metavar="CONTROL",
        help="controls to add to the methods, or none (default: all): "
        + "; ".join(f"{name}: {what}" for name, what in CONTROLS.items()),
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="METHOD",
        help="the method that the others are compared with (default, and where it is not finished: the one of the set "
        "with the best validation NLL that does not use the weights of cats)",
    )
    grid.add_options(parser, Path("runs/compare"))


def run(args: argparse.Namespace) -> None:
    """Train the runs that are missing, then write compare.json, .csv, .md and .png of those that are finished."""
    doing(f"looking for finished runs in {args.out}")
    runs = planned(args)
    methods = dict.fromkeys(run.method for run in runs)
    if args.baseline and args.baseline not in methods:
        raise unknown("method", args.baseline, methods, where="--baseline")
    grid.run(args, runs, lambda: write(args.out, runs, args.baseline))


def write(out: Path, runs: Sequence[Run], baseline: str = "") -> str:
    """Write the tables and the picture of the runs that are finished. Return the tables and the names of the files."""
    from cats.nmt.files import atomic_write
    from cats.nmt.scoring.compare import tables
    from cats.nmt.scoring.compare.summarise import summarise
    from cats.nmt.scoring.plots.comparison import draw_comparison

    comparison = summarise(runs, baseline)
    text = tables.comparison_tables(comparison)
    atomic_write(out / "compare.json", json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
    atomic_write(out / "compare.csv", tables.comparison_csv(comparison))
    atomic_write(out / "compare-summary.csv", tables.summary_csv(comparison))
    atomic_write(out / "compare.md", text)
    draw_comparison(comparison, out / "compare.png")
    return (
        f"{text}\nWritten: {out}/compare.md, compare.csv, compare-summary.csv, compare.json, compare.png, compare.svg"
    )


def planned(args: argparse.Namespace) -> list[Run]:
    """The runs that the options ask for."""
    from cats.nmt.scoring.grid.plan import plan

    return plan(grid.chosen(args), args.methods, args.controls)
