"""`python -m bench.tasks.settings`: the pictures of docs/guide/settings.md, of what the settings of CATS do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common import results
from bench.common.command import Parser, refuse
from bench.common.machine import ROOT, cores
from bench.common.results import ResultFiles, provenance

from . import pictures
from .methods import REFERENCE, SETTINGS, setting
from .run import run
from .tables import CATS, MOST_SEEDS, markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 2 if the arguments are wrong."""
    parser = Parser(
        prog="python -m bench.tasks.settings",
        description="Draws what strength, floor, prior and inner_steps of cats.CATS do: to the weights of two tasks "
        "with fixed gradients, and to the errors of two of the small problems. This takes a minute on two cores.",
        epilog="Prints Markdown, and writes <machine>-<date>-settings.json and .md to bench/results, and the pictures.",
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--jobs", metavar="N", type=int, default=cores(), help="trainings at a time (default: cores)")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, default=results.FOLDER, help="where to write results (bench/results)"
    )
    parser.add_argument(
        "--pictures", metavar="FOLDER", type=Path, default=ROOT / "docs" / "guide", help="and pictures (docs/guide)"
    )
    options = parser.parse_args(arguments)
    if not 2 <= options.seeds <= MOST_SEEDS:
        return refuse(f"--seeds must be 2 to {MOST_SEEDS}, not {options.seeds}")
    if options.jobs < 1:
        return refuse(f"--jobs must be at least 1, not {options.jobs}")
    for folder in (options.out, options.pictures):
        if not folder.is_dir():
            return refuse(f"{folder} is not a folder")
    methods = [REFERENCE, CATS, *(setting(name, value) for name, values in SETTINGS.items() for value in values)]
    source = provenance("bench.tasks.settings", arguments)
    files = ResultFiles(options.out, source.file_stem("cpu", "settings"), source, markdown)
    for found in run([*pictures.PROBLEMS.values()], methods, options.seeds, options.jobs):
        files.update(found)
    files.finish(found)
    pictures.draw(found, options.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
