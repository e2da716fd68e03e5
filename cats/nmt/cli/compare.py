"""`cats compare`: train several methods with several seeds and compare them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli.parser import Parser

if TYPE_CHECKING:
    from cats.nmt.scoring.grid import Run

SUMMARY = "train several methods with several seeds on one corpus, and write one table"
HELP = """\
Train several methods with several seeds on the same corpora, all with the same budget, and write one table and one
picture. After an interruption, the same command continues.
"""


def add_arguments(parser: Parser) -> None:
    from cats.nmt.scoring.grid import METHODS, SETS

    parser.add_argument(
        "--sets", nargs="+", default=["ted", "wmt"], metavar="SET", help=f"any of {', '.join(SETS)} (default: ted wmt)"
    )
    parser.add_argument("--data", metavar="DIR", help="compare on this corpus instead of the CLDR sets")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        metavar="METHOD",
        help=f"any of {', '.join(METHODS)} (default: all)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED", help="random seeds (default: 1 2 3)"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,..",
        help="another method: cats with these settings, e.g. slow:method.alpha_lr=0.01",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="number of runs at a time (default: 2)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/compare"),
        metavar="DIR",
        help="folder for the runs and the tables (default: runs/compare)",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="settings that all runs start from; cats train --help lists the names"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of settings; wins over the preset, but not over the settings of a set, such as train.steps",
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="a setting for all runs"
    )


def run(args: argparse.Namespace) -> None:
    """Train the runs that are missing, then write compare.json, .csv, .md and .png."""
    from cats.nmt.files import atomic_write
    from cats.nmt.scoring import compare, grid, plots, tables
    from cats.nmt.training.run import load_corpus

    runs = planned(args)
    for each in runs:
        grid.check_resumable(each)
    if args.data:
        load_corpus(runs[0].config.data)  # a fault in the corpus is reported here once, not by every run
    grid.execute([each for each in runs if not each.finished], args.jobs)
    comparison = compare.summarise(runs)
    text = tables.comparison_tables(comparison)
    atomic_write(args.out / "compare.json", json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
    atomic_write(args.out / "compare.csv", tables.comparison_csv(comparison))
    atomic_write(args.out / "compare.md", text)
    plots.draw_comparison(comparison, args.out / "compare.png")
    print(text)
    print(f"Written: {args.out}/compare.md, compare.csv, compare.json, compare.png")


def planned(args: argparse.Namespace) -> list[Run]:
    """The runs that the options ask for."""
    from cats.nmt.config.toml import read_settings
    from cats.nmt.scoring.grid import plan

    return plan(
        args.out,
        read_settings(args.preset, args.config),
        sets=args.sets,
        methods=args.methods,
        seeds=args.seeds,
        jobs=args.jobs,
        variants=args.variant,
        data=args.data,
        overrides=args.overrides,
    )
