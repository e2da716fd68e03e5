"""`cats plot`: pictures of several runs together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli.parser import Parser
from cats.nmt.errors import unknown
from cats.nmt.screen import doing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cats.nmt.scoring.plots.runs import Runs

SUMMARY = "draw the losses, scores, weights and examples of several runs, or a score against a setting"
HELP = """\
Draw several runs together, as PNG and SVG. Runs of one method, such as the seeds of cats compare, are drawn as thin
lines, and their mean as a bold one, as far as all of them are trained. Runs that still train can be drawn, too.

pictures over the updates:
  loss        training and validation loss, a column for LoRes and one for HiRes
  nll         validation loss over updates and over target tokens
  bleu, chrf  the same of validation scores, which train.validate_bleu computes
  gap         training minus validation loss
  examples    sentence pairs that were seen of each language
  efficiency  validation loss against the sentence pairs that were seen
  alpha       the weights of the languages
  forgetting  validation loss of the languages that train.pretrain trains first, and of the others
  curvature   top Hessian eigenvalue of the languages, and how well their gradients agree (after cats analyse)

pictures of the last measurement of cats analyse:
  similarity  how similar the gradients of each two languages are, in direction and in size
  layers      the same by kind of layer, mean over the pairs of languages

pictures against a setting, with --against:
  nll         validation loss of the best model
  bleu, chrf  test scores
  forgetting  how much higher the last validation loss is than the lowest, of the languages trained first

examples:
  cats plot runs/compare/ted/*-seed*
  cats plot runs/a runs/b --pictures loss alpha --out pictures
  cats plot runs/small-* runs/large-* --against model.d_model
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directories, as printed by cats train")
    parser.add_argument(
        "--pictures",
        nargs="+",
        default=[],
        metavar="NAME",
        help="which ones (default: all that the runs have data for)",
    )
    parser.add_argument(
        "--against", default="", metavar="KEY", help="draw against this setting, such as sampling.batch_tokens"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/plots"), metavar="DIR", help="folder for the files (default: runs/plots)"
    )


def run(args: argparse.Namespace) -> None:
    doing(f"reading {args.runs[0] if len(args.runs) == 1 else f'{len(args.runs)} runs'}")
    from cats.nmt.config.schema import FIELDS
    from cats.nmt.scoring.plots.runs import NothingToDraw, read_runs
    from cats.nmt.scoring.plots.style import save_figure, without_formulas

    if args.against and args.against not in FIELDS:
        raise unknown("setting", args.against, FIELDS, where="--against")
    pictures = against_setting(args.against) if args.against else over_time()
    for name in args.pictures:
        if name not in pictures:
            raise unknown("picture", name, pictures, where="--pictures")
    runs = read_runs(args.runs, against=args.against)
    for notice in runs.notices:
        print(f"cats: {notice}", file=sys.stderr)
    lacking: dict[str, NothingToDraw] = {}
    with without_formulas():
        for name in args.pictures or pictures:
            try:
                figure = pictures[name](runs)
            except NothingToDraw as error:
                if args.pictures:
                    raise
                lacking[name] = error
                continue
            args.out.mkdir(parents=True, exist_ok=True)
            png, svg = save_figure(figure, args.out / (f"{name}-against-{args.against}" if args.against else name))
            print(f"{png}, {svg.name}", flush=True)
    if len(lacking) == len(pictures):
        raise next(iter(lacking.values()))
    for name, reason in lacking.items():
        print(f"cats: no picture {name}: {reason}", file=sys.stderr)


def over_time() -> dict[str, Callable[[Runs], Figure]]:
    """The pictures of what changes while a run trains, by their names."""
    from cats.nmt.scoring.plots import curves, landscape, methods

    return {
        "loss": methods.losses,
        "nll": partial(methods.scores, measure="nll"),
        "bleu": partial(methods.scores, measure="bleu"),
        "chrf": partial(methods.scores, measure="chrf"),
        "gap": methods.gap,
        "examples": curves.examples,
        "efficiency": methods.efficiency,
        "alpha": curves.alphas,
        "forgetting": methods.forgetting,
        "curvature": landscape.curvature,
        "similarity": landscape.similarity,
        "layers": landscape.layers,
    }


def against_setting(key: str) -> dict[str, Callable[[Runs], Figure]]:
    """The pictures of a result against a setting, by their names."""
    from cats.nmt.scoring.plots import settings

    return {measure: partial(settings.against, key=key, measure=measure) for measure in settings.MEASURES}
