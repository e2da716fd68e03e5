"""`cats plot`: pictures of several runs together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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
Draw several runs together, as PNG and SVG, with the numbers as CSV. Runs of one method, such as the seeds of cats
compare, are drawn as thin lines, and their mean as a bold one, as far as all of them are trained. Runs that still
train can be drawn, too. The folder of cats compare or cats pareto stands for the runs in it; each set is drawn
separately.

pictures over the updates:
  loss        training and validation loss, a column for LoRes and one for HiRes
  nll         validation loss over updates and over target tokens
  bleu, chrf  the same of validation scores, which train.validate_bleu computes
  gap         training minus validation loss
  examples    sentence pairs that were seen of each language
  efficiency  validation loss against the sentence pairs that were seen
  alpha       the weights of the languages
  forgetting  validation loss of the languages that train.pretrain trains first, and of the others
  curvature   largest Hessian eigenvalue of the languages, and how well their gradients agree (after cats analyse)

pictures of the last measurement of cats analyse:
  similarity  how similar the gradients of each two languages are, in direction and in size
  layers      the same by kind of layer, mean over the pairs of languages

picture of a folder of cats pareto, which has the numbers in front.csv:
  front       the trade-off fronts

pictures against a setting, with --against:
  nll         validation loss of the best model
  bleu, chrf  test scores
  forgetting  how much higher the last validation loss is than the lowest, of the languages trained first

examples:
  cats plot runs/compare
  cats plot runs/compare/ted/cats-seed* runs/compare/ted/T=5-seed*
  cats plot runs/a runs/b --pictures loss alpha --out pictures
  cats plot runs/small-* runs/large-* --against model.d_model
"""
FRONT = "front"  # the picture of a folder of cats pareto


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run directories, as printed by cats train, or folders of them, such as those of cats compare",
    )
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
    doing(f"reading {args.runs[0] if len(args.runs) == 1 else f'{len(args.runs)} runs or folders'}")
    from cats.nmt.config.schema import FIELDS
    from cats.nmt.files import atomic_write, make_folder
    from cats.nmt.scoring.plots.numbers import figure_csv
    from cats.nmt.scoring.plots.runs import NothingToDraw
    from cats.nmt.scoring.plots.style import save_figure, without_formulas

    if args.against and args.against not in FIELDS:
        raise unknown("setting", args.against, FIELDS, where="--against")
    pictures = against_setting(args.against) if args.against else over_time()
    known = [*pictures] if args.against else [*pictures, FRONT]
    for name in args.pictures:
        if name not in known:
            raise unknown("picture", name, known, where="--pictures")
    chosen = {name: picture for name, picture in pictures.items() if not args.pictures or name in args.pictures}
    drawn, lacking = set[str](), dict[str, NothingToDraw]()
    with without_formulas():
        for name, path, draw in to_draw(args, chosen):
            try:
                figure = draw()
            except NothingToDraw as error:
                lacking.setdefault(name, error)
                continue
            make_folder(path.parent)
            written = save_figure(figure, path)
            if name != FRONT:  # the numbers of fronts are beside them, in front.csv
                numbers = path.with_name(f"{path.name}.csv")
                atomic_write(numbers, figure_csv(figure))
                written.append(numbers)
            print(f"{written[0]}, {', '.join(file.name for file in written[1:])}", flush=True)
            drawn.add(name)
    missing = {name: reason for name, reason in lacking.items() if name not in drawn}
    if missing and (args.pictures or not drawn):
        raise next(iter(missing.values()))
    if missing:
        names = ", ".join(missing)
        print(f"cats: the runs have no data for {names}; --pictures NAME says what it needs", file=sys.stderr)


def to_draw(
    args: argparse.Namespace, pictures: Mapping[str, Callable[[Runs], Figure]]
) -> Iterator[tuple[str, Path, Callable[[], Figure]]]:
    """Yield each picture: its name, its file without suffix, and the function that draws it.

    Args:
        pictures: those of runs. Each set of a folder has its own, in a folder of its name if there are several.
    """
    if not args.against and (not args.pictures or FRONT in args.pictures):
        yield from fronts(args)
    if pictures:
        yield from of_runs(args, pictures)


def of_runs(
    args: argparse.Namespace, pictures: Mapping[str, Callable[[Runs], Figure]]
) -> Iterator[tuple[str, Path, Callable[[], Figure]]]:
    """Yield the pictures of runs, as `to_draw` does. What there is nothing to draw of is left out, with a notice."""
    from cats.nmt.scoring.grid.folders import by_set, runs_in
    from cats.nmt.scoring.plots.runs import NothingToDraw, read_runs

    with_fronts = folders_with_fronts(args.runs)
    only_fronts = [path for path in with_fronts if not runs_in(path)]
    lacking = [NothingToDraw(f"{path} has fronts, but no runs") for path in only_fronts]
    sets = by_set(path for path in args.runs if path not in only_fronts)
    found: dict[Path, Runs] = {}
    for name, paths in sets.items():
        folder = args.out / name if len(sets) > 1 else args.out
        try:
            found[folder] = read_runs(paths, against=args.against, named=args.runs)
        except NothingToDraw as error:
            lacking.append(error)
    if not found and (args.pictures or args.against or not with_fronts):
        raise lacking[0]
    notices = [notice for runs in found.values() for notice in runs.notices]
    for notice in (*lacking, *notices):
        print(f"cats: {notice}", file=sys.stderr)
    for folder, runs in found.items():
        for name, picture in pictures.items():
            file = folder / (f"{name}-against-{args.against}" if args.against else name)
            yield name, file, partial(picture, runs)


def folders_with_fronts(paths: Iterable[Path]) -> list[Path]:
    """Return those that have the results of `cats pareto`."""
    from cats.nmt.scoring.pareto.results import FILE

    return [path for path in paths if (path / FILE).is_file()]


def fronts(args: argparse.Namespace) -> Iterator[tuple[str, Path, Callable[[], Figure]]]:
    """Yield the picture of each folder of `cats pareto`, as `to_draw` does."""
    from cats.nmt.files import short_names
    from cats.nmt.scoring.pareto.results import FILE, read_fronts
    from cats.nmt.scoring.plots.front import fronts_figure
    from cats.nmt.scoring.plots.runs import NothingToDraw

    folders = [*{path.resolve(): path for path in folders_with_fronts(args.runs)}.values()]
    if not folders and args.pictures:
        raise NothingToDraw(f"none of the folders has the results of cats pareto ({FILE})")
    for folder, short in zip(folders, short_names(folders), strict=True):
        name = f"{FRONT}-{short.replace('/', '-')}" if len(folders) > 1 else FRONT
        yield FRONT, args.out / name, partial(fronts_figure, read_fronts(folder))


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
