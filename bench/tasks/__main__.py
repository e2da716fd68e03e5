"""`python -m bench.tasks`: the task weightings against equal weights on small problems."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common import results
from bench.common.command import Parser, refuse
from bench.common.machine import cores
from bench.common.results import ResultFiles, provenance

from .methods import COMPARED, METHODS, REFERENCE
from .problems import problems
from .run import run
from .tables import MOST_SEEDS, markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 2 if the arguments are wrong."""
    parser = Parser(
        prog="python -m bench.tasks",
        description="Compares task weightings with equal weights on small multi-task problems. This takes ten to "
        "twenty minutes on two cores.",
        epilog="Prints Markdown, and writes <machine>-<date>-tasks.json and .md to bench/results.",
        allow_abbrev=False,
    )
    parser.add_argument("--problems", metavar="TEXT", default="", help="only problems whose name contains this")
    parser.add_argument(
        "--methods",
        metavar="NAME",
        nargs="+",
        default=list(COMPARED),
        help=f"any of {', '.join(METHODS)} (default: {', '.join(COMPARED)})",
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="how many seeds (default: 5)")
    parser.add_argument("--jobs", metavar="N", type=int, default=cores(), help="trainings at a time (default: cores)")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=results.FOLDER,
        help="where to write the files (default: bench/results)",
    )
    options = parser.parse_args(arguments)
    names = [name for name in problems() if options.problems in name]
    unknown = [name for name in options.methods if name not in METHODS]
    if not names:
        return refuse(f"no problem's name contains {options.problems!r}; the problems are: {', '.join(problems())}")
    if unknown:
        return refuse(f"there is no method {unknown[0]!r}; the methods are {', '.join(METHODS)}")
    if not 2 <= options.seeds <= MOST_SEEDS:
        return refuse(f"--seeds must be 2 to {MOST_SEEDS}, not {options.seeds}")
    if options.jobs < 1:
        return refuse(f"--jobs must be at least 1, not {options.jobs}")
    if not options.out.is_dir():
        return refuse(f"{options.out} is not a folder")
    methods = [name for name in METHODS if name in (REFERENCE, *options.methods)]
    source = provenance("bench.tasks", arguments)
    files = ResultFiles(options.out, source.file_stem("cpu", "tasks"), source, markdown)
    for found in run(names, methods, options.seeds, options.jobs):
        files.update(found)
    files.finish(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
