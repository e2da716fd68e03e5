"""`cats report`: one HTML page about one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cats.nmt.cli.parser import Parser
from cats.nmt.errors import UserError
from cats.nmt.files import output_file
from cats.nmt.screen import doing

SUMMARY = "write one HTML page about one or several runs: scores, pictures, translations, warnings"
HELP = """\
Write one HTML page about one or several runs that are scored, or about the fronts of cats pareto: warnings, what was
trained, tables that sort, pictures, translations side by side with their differences from the reference marked, and the
commands to reproduce it. The page is one file that needs no network. It can be read on a phone and printed.

examples:
  cats report runs/NAME                 writes runs/NAME/report.html
  cats report runs/compare              the runs and the tables of cats compare
  cats report runs/pareto               the fronts of cats pareto, and its runs if they are scored
  cats report runs/A runs/B --out ab.html
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run directories, or folders of them (cats compare, cats pareto)",
    )
    parser.add_argument(
        "--lines", type=int, default=6, metavar="N", help="test lines of each language to show (default: 6)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: report.html in the first RUN; of several: here)"
    )


def run(args: argparse.Namespace) -> None:
    if args.lines < 0:
        raise UserError(f"--lines must be at least 0, not {args.lines}")
    several = len(args.runs) > 1
    doing(f"reading {len(args.runs)} runs or folders" if several else f"reading {args.runs[0]}")
    from cats.nmt.scoring.report.page import page
    from cats.nmt.scoring.report.runs import read

    content = read(args.runs)
    out = args.out or (Path("report.html") if several else args.runs[0] / "report.html")
    fronts = sum(len(found.fronts.fronts) for found in content.fronts)
    counts = {"run": len(content.runs), "front": fronts}
    said = ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)
    title = said if several else args.runs[0].resolve().name
    command = ["cats", "report", *map(str, args.runs), "--lines", str(args.lines), "--out", str(out)]
    doing(f"writing {out}")
    with output_file(out) as file:  # before the work, so that nothing is drawn for a name that cannot be written
        text = page(content, title, command, lines=args.lines).encode()
        file.write(text)
    print(f"{out}: {said}, {len(text) / 1024:,.0f} KiB")
