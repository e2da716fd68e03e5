"""`cats methods`: the methods that `cats train --method NAME` offers."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from dataclasses import replace

from cats.nmt.cli.parser import Parser
from cats.nmt.config.checks import format_value
from cats.nmt.config.recipes import RECIPES, recipe
from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError, nearest
from cats.nmt.methods.catalogue import CATALOGUE, FAMILIES, Method
from cats.nmt.methods.options import described, options_of_rule
from cats.nmt.screen import doing

SUMMARY = "list the methods of `cats train --method`, or describe one"
HELP = """\
List all methods: how the tasks are weighted, or how they are drawn. With NAME, describe one and its options.

examples:
  cats methods
  cats methods staged
  cats train --method NAME --set method.options=KEY=VALUE,KEY=VALUE
"""
_WIDTH = 110  # as the help of the commands


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="the method to describe")


def run(args: argparse.Namespace) -> None:
    if args.name is None:
        print(table())
        return
    names = [method.name for method in CATALOGUE]
    prefix, colon, _ = args.name.partition(":")
    name = f"{prefix}:NAME" if colon else args.name
    if name not in names or args.name == f"{prefix}:":
        raise UserError(f"unknown method {args.name}{nearest(args.name, names)}; to list all: cats methods")
    method = CATALOGUE[names.index(name)]
    doing(f"looking up {args.name}")  # the options are read from its class, which imports torch
    print(details(method if name == args.name else replace(method, name=args.name)))


def table() -> str:
    """All methods by family: name, what it does, paper, needs, cost."""
    lines: list[str] = []
    for family in FAMILIES:
        of_family = [method for method in CATALOGUE if method.family == family]
        if not of_family:
            continue
        lines += [*([""] if lines else []), f"{family}:"]
        for method in of_family:
            texts = [line for text in (method.what, *_facts(method)) for line in textwrap.wrap(text, _WIDTH - 24)]
            lines += [f"  {method.name:<22}{texts[0]}", *(f"{'':24}{text}" for text in texts[1:])]
    return "\n".join(lines)


def _facts(method: Method) -> list[str]:
    return [method.paper, f"needs {method.needs}; {method.cost}"]


def details(method: Method) -> str:
    """One method with its options, or the settings that it changes."""
    lines = [f"{method.name}: {method.what}", *_facts(method), f"family: {method.family}"]
    if method.note:
        lines += ["", *textwrap.wrap(method.note, _WIDTH)]
    if method.name in RECIPES:
        steps = Config().train.steps
        lines += ["", f"It sets, unless they are given with method.name (for {steps:,} updates):"]
        lines += [f"  {name} = {format_value(value)}" for name, value in recipe(method.name, steps).items()]
    if method.made_by:
        options = described(method)
        lines += ["", "options:" if options else "It has no options."]
        lines += [f"  {name}: {text}" for name, text in options.items()]
        lines += [f"  {text}" for text in options_of_rule(method.name)]
        lines += ["", textwrap.indent(inspect.getdoc(method.maker()) or "", "  ")]
    return "\n".join(lines)
