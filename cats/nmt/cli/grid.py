"""What `cats compare` and `cats pareto` share: the options of a grid of runs, and training the runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cats.nmt.cli.parser import Parser
from cats.nmt.errors import UserError

if TYPE_CHECKING:
    from cats.nmt.scoring.grid.plan import Grid
    from cats.nmt.scoring.grid.runs import Run


def add_corpora(parser: Parser, default: Sequence[str]) -> None:
    """Add --sets and --data."""
    from cats.nmt.scoring.grid.plan import SETS

    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--sets",
        nargs="+",
        default=list(default),
        metavar="SET[:KEY=VALUE,..]",
        help=f"any of {', '.join(SETS)}; with settings of its own, e.g. ted:train.steps=900 "
        f"(default: {' '.join(default)})",
    )
    either.add_argument("--data", metavar="DIR", help="train on this corpus instead of the CLDR sets")


def add_options(parser: Parser, out: Path) -> None:
    """Add the options from --seeds to --set.

    Args:
        out: the default of --out.
    """
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED", help="random seeds (default: 1 2 3)"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:BASE,KEY=VALUE,..",
        help="another method: BASE (default: cats) with these settings, e.g. slow:method.alpha_lr=0.01; a list is "
        "written as az,be or [az,be]",
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
        default=out,
        metavar="DIR",
        help=f"folder for the runs and the tables (default: {out})",
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


def chosen(args: argparse.Namespace) -> Grid:
    """The grid that these options ask for."""
    from cats.nmt.config.toml import read_settings
    from cats.nmt.scoring.grid.plan import Grid

    return Grid(
        args.out,
        read_settings(args.preset, args.config),
        sets=args.sets,
        seeds=args.seeds,
        jobs=args.jobs,
        variants=args.variant,
        rates=args.lr,
        count=max(1, len(args.lr)) if args.trials is None else args.trials,
        tuning_seed=args.tuning_seed,
        data=args.data,
        overrides=args.overrides,
    )


def run(args: argparse.Namespace, runs: Sequence[Run], write: Callable[[], str]) -> None:
    """Train the runs that are missing, then write the results of those that are finished, and print them.

    Args:
        write: writes the results, and returns what is printed of them: nothing after an interruption.

    Raises:
        UserError: some runs failed: the results of the others are written. Or another command uses the same --out, or
            a run in it has other settings.
    """
    from cats.nmt.files import locked, make_folder
    from cats.nmt.scoring.grid.execute import execute
    from cats.nmt.scoring.grid.runs import check_all, everything
    from cats.nmt.training.load_corpus import load_corpus

    def results() -> str:
        """Write the results, if all finished runs have the settings that the trials have chosen by now."""
        check_all([each for each in runs if each.finished])
        return write()

    if args.only_finished:
        print(results())
        return
    check_all(runs)
    if args.data:
        corpus = load_corpus(runs[0].config.data)  # a fault in the corpus is reported here once, not by every run
        translated = any(each.config.evaluate.search != "none" for each in runs)
        if translated and not any(len(task.test) for task in corpus.tasks):
            raise UserError(f"{args.data}: no task has test lines, so nothing could be compared; add test files")

    def refuse() -> NoReturn:
        raise UserError(f"{args.out}: another command is training runs there; wait for its end, or give another --out")

    make_folder(args.out)
    with locked(args.out, refuse):
        try:
            failed = execute(runs, args.jobs)
        except KeyboardInterrupt:
            if any(each.finished for each in runs):
                results()
            raise
        if any(each.finished for each in runs):
            print(results())
    if failed:
        path, error = next(iter(failed.items()))
        count = len(everything(runs))
        raise UserError(f"{len(failed)} of {count} runs failed; the first: {path}: {error}")
