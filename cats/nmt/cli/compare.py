"""`cats compare`: train several methods with several seeds and compare them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli.parser import Parser
from cats.nmt.errors import UserError

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
    from cats.nmt.scoring.grid.plan import SETS

    parser.add_argument(
        "--sets",
        nargs="+",
        default=["ted", "wmt"],
        metavar="SET[:KEY=VALUE,..]",
        help=f"any of {', '.join(SETS)}; with settings of its own, e.g. ted:train.steps=900 (default: ted wmt)",
    )
    parser.add_argument("--data", metavar="DIR", help="compare on this corpus instead of the CLDR sets")
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
        "--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED", help="random seeds (default: 1 2 3)"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:BASE,KEY=VALUE,..",
        help="another method: BASE (default: cats) with these settings, e.g. slow:method.alpha_lr=0.01",
    )
    parser.add_argument(
        "--lr",
        nargs="+",
        type=float,
        default=[],
        metavar="LR",
        help="learning rates to choose from on validation text, the same for every method (default: train.lr)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="trials of each method to choose its settings by; those beyond --lr go to settings of its own, or to more "
        "learning rates (default: one for each of --lr)",
    )
    parser.add_argument(
        "--tuning-seed", type=int, default=0, metavar="SEED", help="seed of the trials, not one of --seeds (default: 0)"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="number of runs at a time (default: 2)")
    parser.add_argument("--only-finished", action="store_true", help="train nothing; make tables of what is finished")
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
    """Train the runs that are missing, then write compare.json, .csv, .md and .png of those that are finished."""
    from cats.nmt.scoring.grid.execute import execute
    from cats.nmt.scoring.grid.runs import check_all, everything
    from cats.nmt.training.run import load_corpus

    runs = planned(args)
    check_all([each for each in runs if each.finished] if args.only_finished else runs)
    if args.only_finished:
        write(args.out, runs)
        return
    if args.data:
        load_corpus(runs[0].config.data)  # a fault in the corpus is reported here once, not by every run
    try:
        failed = execute(runs, args.jobs)
    except KeyboardInterrupt:
        if any(each.finished for each in runs):
            write(args.out, runs)
        raise
    if any(each.finished for each in runs):
        write(args.out, runs)
    if failed:
        path, error = next(iter(failed.items()))
        count = len(everything(runs))
        raise UserError(f"{len(failed)} of {count} runs failed; the first: {path}: {error}")


def write(out: Path, runs: Sequence[Run]) -> None:
    """Write the tables and the picture of the runs that are finished, and print the tables."""
    from cats.nmt.files import atomic_write
    from cats.nmt.scoring.compare import tables
    from cats.nmt.scoring.compare.summarise import summarise
    from cats.nmt.scoring.plots.comparison import draw_comparison

    comparison = summarise(runs)
    text = tables.comparison_tables(comparison)
    atomic_write(out / "compare.json", json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
    atomic_write(out / "compare.csv", tables.comparison_csv(comparison))
    atomic_write(out / "compare-summary.csv", tables.summary_csv(comparison))
    atomic_write(out / "compare.md", text)
    draw_comparison(comparison, out / "compare.png")
    print(text)
    print(f"Written: {out}/compare.md, compare.csv, compare-summary.csv, compare.json, compare.png, compare.svg")


def planned(args: argparse.Namespace) -> list[Run]:
    """The runs that the options ask for."""
    from cats.nmt.config.toml import read_settings
    from cats.nmt.scoring.grid.plan import plan

    return plan(
        args.out,
        read_settings(args.preset, args.config),
        sets=args.sets,
        methods=args.methods,
        seeds=args.seeds,
        jobs=args.jobs,
        variants=args.variant,
        controls=args.controls,
        rates=args.lr,
        count=max(1, len(args.lr)) if args.trials is None else args.trials,
        tuning_seed=args.tuning_seed,
        data=args.data,
        overrides=args.overrides,
    )
