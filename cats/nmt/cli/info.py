"""`cats info`: what is installed, and what can be used."""

from __future__ import annotations

import argparse

from cats.info import check, describe
from cats.nmt.cli.parser import Parser
from cats.nmt.errors import UserError
from cats.nmt.screen import doing

SUMMARY = "show versions, devices, backends and missing packages"
HELP = """\
Show versions, devices, the backends of the operators (with the reason if one cannot be used) and missing packages.

With --check, compare every operator of every usable backend with float64 on small data, and show how long it took. On a
GPU this takes minutes, most of them to compile Triton's kernels.
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--check", action="store_true", help="compare all kernels with float64 (minutes on a GPU)")


def run(args: argparse.Namespace) -> None:
    doing("looking at this machine")
    print(describe())
    if not args.check:
        return
    print()
    wrong = 0
    for line, is_wrong in check():
        print(line, flush=True)
        wrong += is_wrong
    if wrong:
        raise UserError(f"{wrong} checks failed, see above; calls that name no backend do not use these kernels")
