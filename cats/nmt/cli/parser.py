"""The parser of every command's options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from cats.nmt.config.schema import FIELDS
from cats.nmt.errors import UserError, nearest


def _settings(option: str) -> list[str]:
    """The settings with the key that an option names, such as train.steps of --steps."""
    key = option.removeprefix("--").replace("-", "_")
    return [name for name in FIELDS if name.partition(".")[2] == key]


class Parser(argparse.ArgumentParser):
    """Raises `UserError` for wrong options and keeps the line breaks of the help text."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=110),
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the parsed arguments. The error for an unknown option suggests the nearest known one.

        An empty argument is refused. It usually comes from an unset variable of a script, and as the name of a folder
        it would mean the current one.
        """
        for before, argument in zip(["", *arguments], arguments, strict=False):
            option, equals, value = argument.partition("=")
            if argument and not (option.startswith("--") and equals and not value):
                continue
            where = option if argument else before if before.startswith("--") else "an argument"
            self.error(f"{where} is empty: give a value{', or leave the option out' if where[0] == '-' else ''}")
        for argument in arguments:
            option = argument.partition("=")[0]
            if option == "--":
                break
            if option.startswith("--") and option not in self._option_string_actions:
                known_options = self._option_string_actions
                advice = nearest(option, known_options)
                if "--set" in known_options and f"{option}s" not in known_options and (names := _settings(option)):
                    advice = f" (write {' or '.join(f'--set {name}=..' for name in names)})"
                self.error(f"unknown option '{option}'{advice}")
        known, unknown = self.parse_known_args(arguments)
        for argument in unknown:
            kind = "unknown option" if argument.startswith("-") else "unexpected argument"
            self.error(f"{kind} '{argument}'")
        return known
