"""`cats significance`: is one run better than another?"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from cats.nmt.cli.parser import Parser
from cats.nmt.errors import UserError
from cats.nmt.files import output_file
from cats.nmt.screen import doing

SUMMARY = "test whether one run is significantly better than another"
HELP = """\
Test whether run B is better than run A: paired bootstrap resampling and approximate randomisation of BLEU and chrF,
per language and for the group averages. The test compares the translations that cats evaluate wrote for both runs.
p-values are two-sided and not corrected for multiple tests.

examples:
  cats significance runs/BASELINE runs/NEW
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("first", metavar="RUN_A", help="run directory, scored by cats evaluate")
    parser.add_argument("second", metavar="RUN_B", help="another one, scored on the same test lines")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="random seed (default: 1)")
    parser.add_argument("--out", metavar="FILE", help="also write the numbers to this file, as JSON")


def run(args: argparse.Namespace) -> None:
    doing(f"comparing {args.first} and {args.second}")
    from cats.nmt.scoring import significance
    from cats.nmt.scoring.tables import significance_table

    if args.seed < 0:
        raise UserError(f"--seed must be at least 0, not {args.seed}")
    first, second = Path(args.first), Path(args.second)
    # The file is opened first, so that nothing is computed for a name that cannot be written.
    with output_file(args.out) if args.out is not None else contextlib.nullcontext() as file:
        rows = significance.compare(first, second, args.seed)
        warnings = significance.untrained(first, second)
        found = {
            "first": args.first,
            "second": args.second,
            "seed": args.seed,
            "tests": [row.to_json() for row in rows],
            "warnings": warnings,
        }
        if file:
            text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
            file.write(f"{text}\n".encode(errors="backslashreplace"))  # a path may be no UTF-8
    if lone := significance.unshared(first, second):
        print(f"cats: left out, because only one run has them: {', '.join(lone)}", file=sys.stderr)
    print(f"A = {args.first}\nB = {args.second}\n\n{significance_table(rows)}")
    if warnings:
        print("\n" + "\n".join(warnings))
