"""`python -m bench.scaling`: the cost of a step with several processes, measured and predicted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common import results
from bench.common.command import Parser, refuse
from bench.common.results import ResultFiles, provenance

from . import predictions
from .measure import Settings, run
from .tables import markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 2 if the arguments are wrong."""
    parser = Parser(
        prog="python -m bench.scaling",
        description="Measures the constants of the cost model of docs/scaling.md and whole steps, with 1, 2 and 4 "
        "processes on this machine. This takes about two minutes on two cores.",
        epilog="Prints Markdown, and writes <machine>-<date>-scaling.json and .md to bench/results.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--predict",
        action="store_true",
        help="measure nothing: print the predictions for GPUs, whose figures are given",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=results.FOLDER,
        help="where to write the files (default: bench/results)",
    )
    options = parser.parse_args(arguments)
    if options.predict:
        print(predictions.markdown(), end="")
        return 0
    if not options.out.is_dir():
        return refuse(f"{options.out} is not a folder")
    source = provenance("bench.scaling", arguments)
    files = ResultFiles(options.out, source.file_stem("cpu", "scaling"), source, markdown)
    for found in run(Settings()):
        files.update(found)
    files.finish(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
