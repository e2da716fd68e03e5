"""`cats pareto`: what two languages trade off over the sampling ratios, and whether a method is beyond that front."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli import grid
from cats.nmt.cli.parser import Parser
from cats.nmt.screen import doing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cats.nmt.scoring.pareto.plan import PlannedFront

SUMMARY = "draw the trade-off front of static sampling ratios, and other methods beside it"
HELP = """\
Train static sampling ratios between two languages, or two groups of them, and draw their trade-off front: what one side
loses when the other one gets more of the sentences. Other methods are trained beside it with the same budget: over the
same ratios, or once if they have a mixture of their own. The tables say which of their points static ratios dominate,
and whether a method is beyond the front, with intervals over the seeds. Figures 1 and 2 of "Order Matters in the
Presence of Dataset Imbalance for Multilingual Learning" (Choi et al. 2023) are such fronts. After an interruption, the
same command continues.

methods, in addition to static ratios:
  restart         the ratio from the start, with optimizer and learning rate restarted after 35 % of the updates
  pretrain        the high side alone for 35 % of the updates, then the ratio after the same restart
  cats, ..        any method of cats train --method, over the ratios, unless it draws the tasks in its own way
  cats-r, ..      the same with that restart
  T=5, temperature-schedule, unimax, bandit, ..
                  methods with a mixture of their own: a single point

examples:
  cats pareto --between kk de --methods restart pretrain            Figure 2, on the set wmt
  cats pareto --sets ted --between az,be tr,ru --methods cats T=5   groups of languages: the mean of each
  cats pareto --between lores hires --lr 1e-3 3e-3 6e-3             learning rates are chosen for each method and ratio
  cats pareto --between kk de --metric bleu                         test BLEU in place of validation NLL: takes longer
"""


def add_arguments(parser: Parser) -> None:
    from cats.nmt.scoring.pareto.plan import DEFAULT, RATIOS
    from cats.nmt.scoring.pareto.results import METRICS, NLL

    grid.add_corpora(parser, ["wmt"])
    parser.add_argument(
        "--between",
        nargs=2,
        action="append",
        metavar=("LOW", "HIGH"),
        help="the two sides: a language, a group (lores, midres, hires), or several with commas between them; may be "
        "repeated; other languages are left out (default: lores hires)",
    )
    parser.add_argument(
        "--ratios",
        nargs="+",
        type=float,
        default=list(RATIOS),
        metavar="R",
        help=f"shares of the sentences that are of LOW (default: {' '.join(map(str, RATIOS))})",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT),
        metavar="METHOD",
        help=f"methods beside static ratios, see above (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--metric",
        choices=list(METRICS),
        default=NLL,
        help="what is drawn: NLL of the validation text, for which nothing is translated, or BLEU or chrF of the test "
        f"text (default: {NLL})",
    )
    grid.add_options(parser, Path("runs/pareto"))


def run(args: argparse.Namespace) -> None:
    """Train the runs that are missing, then write front.json, .csv, .md, .png and .svg of those that are finished."""
    doing(f"reading the corpus, and looking for finished runs in {args.out}")
    from cats.nmt.scoring.pareto.plan import all_runs

    fronts = planned(args)
    grid.run(args, all_runs(fronts), lambda: write(args.out, fronts, args.metric))


def write(out: Path, fronts: Sequence[PlannedFront], metric: str) -> str:
    """Write the tables and the picture of the runs that are finished. Return the tables and the names of the files."""
    from cats.nmt.files import atomic_write
    from cats.nmt.scoring.pareto import tables
    from cats.nmt.scoring.pareto.results import FILE
    from cats.nmt.scoring.pareto.summarise import summarise
    from cats.nmt.scoring.plots.front import draw_fronts

    found = summarise(fronts, metric)
    text = tables.fronts_tables(found)
    atomic_write(out / FILE, json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    atomic_write(out / "front.csv", tables.fronts_csv(found))
    atomic_write(out / "front.md", text)
    draw_fronts(found, out / "front.png")
    return f"{text}\nWritten: {out}/front.md, front.csv, front.json, front.png, front.svg"


def planned(args: argparse.Namespace) -> list[PlannedFront]:
    """The fronts that the options ask for."""
    from cats.nmt.scoring.pareto.plan import plan

    between = [tuple(pair) for pair in args.between or [("lores", "hires")]]
    return plan(grid.chosen(args), between, args.ratios, args.methods, args.metric)
