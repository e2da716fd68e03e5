"""`cats info`: what is installed, and what can be used."""

from __future__ import annotations

import argparse

from cats.info import describe
from cats.nmt.cli.parser import Parser

SUMMARY = "show versions, devices, backends and missing packages"
HELP = """\
Show versions, devices, the backends of the operators (with the reason if one cannot be used) and missing packages.
"""


def add_arguments(parser: Parser) -> None:
    """`cats info` has no options."""


def run(args: argparse.Namespace) -> None:
    print(describe())
