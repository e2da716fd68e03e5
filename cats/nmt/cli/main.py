"""The command line: finds the command, runs it, and turns errors into one line and an exit status.

To add a command, write a module like the others in this folder and list it in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from cats.nmt.cli import (
    analyse,
    average,
    compare,
    data_cldr,
    data_inspect,
    data_prepare,
    evaluate,
    export,
    info,
    methods,
    pareto,
    plot,
    report,
    significance,
    train,
    translate,
)
from cats.nmt.cli.parser import Parser
from cats.nmt.errors import Stopped, UserError, nearest
from cats.nmt.screen import announce


class Command(Protocol):
    """What the module of a command contains. It imports slow packages inside `run`, so that help is fast."""

    SUMMARY: str  # its line in the list of commands
    HELP: str  # what its --help says above the options

    def add_arguments(self, parser: Parser) -> None: ...

    def run(self, args: argparse.Namespace) -> None: ...


COMMANDS: dict[str, Command] = {
    "train": train,
    "evaluate": evaluate,
    "translate": translate,
    "export": export,
    "average": average,
    "significance": significance,
    "compare": compare,
    "analyse": analyse,
    "pareto": pareto,
    "plot": plot,
    "report": report,
    "methods": methods,
    "info": info,
}
DATA_COMMANDS: dict[str, Command] = {
    "cldr": data_cldr,
    "inspect": data_inspect,
    "prepare": data_prepare,
}
MAIN_HELP = """\
Multilingual translation with Curvature Aware Task Scaling: train, score, translate, compare.

commands:
{commands}

examples:
  cats train
  cats train --data my/corpus --method static --temperature 5 --steps 20000
  echo "Monday, 3 hours ago" | cats translate runs/NAME --to az

"cats COMMAND --help" describes a command.
"""
DATA_SUMMARY = "write the built-in corpus, inspect any corpus, prepare it for training"
DATA_HELP = """\
Inspect corpora, prepare them for training, and write the built-in one.

commands:
{commands}

"cats data COMMAND --help" describes a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 2 after bad input or wrong options, 130 after Ctrl-C, 141 if the output pipe was closed.
    """
    _open_streams()
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return status
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        if not isinstance(error, Stopped):
            announce("cats: stopped")
        return 130
    except BrokenPipeError:
        # The reader closed the pipe, as "| head" does. The flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.strerror is None:  # not from the system
            raise
        # Python names the file only when opening it fails. If reading or writing fails, it is usually standard output.
        where = "" if error.filename is None else f"{error.filename or repr('')}: "
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{where}the disk is full; free some space and start again")
        return _fail(f"{where or 'standard output or a file: '}{error.strerror}")
    except ModuleNotFoundError as error:
        from cats.extras import install
        from cats.info import EXTRAS

        extra = next((name for name, modules in EXTRAS.items() if error.name in modules), None)
        if extra is None:
            raise
        return _fail(f"this needs {error.name}; install it with: {install(extra)}")


def _open_streams() -> None:
    """Replace standard streams that the caller closed by empty ones, and escape characters that the locale lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str) -> int:
    # A message may quote a file. Its control characters would break the line, or move the cursor of a terminal.
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    with contextlib.suppress(OSError):  # nobody reads standard error any more
        print(f"cats: {message}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    """Find the command, parse its options and run it. Without a command, print the list of commands."""
    name, rest = (arguments[0] if arguments else ""), arguments[1:]
    if name == "--version":
        from cats import __version__

        print(f"cats {__version__}")
        return 0
    if name == "data":
        prefix, text, commands = "data ", DATA_HELP, DATA_COMMANDS
        name, rest = (rest[0] if rest else ""), rest[1:]
    else:
        prefix, text, commands = "", MAIN_HELP, COMMANDS
    summaries = {known: command.SUMMARY for known, command in commands.items()}
    if commands is COMMANDS:
        summaries["data"] = DATA_SUMMARY
    if name in ("", "-h", "--help"):
        lines = [f"  {prefix}{known:<12}  {summary}" for known, summary in summaries.items()]
        print(text.format(commands="\n".join(lines)), end="")
        return 0 if name else 2
    if name not in commands:
        kind = "option" if name.startswith("-") else "command"
        raise UserError(f"unknown {kind} '{name}'{nearest(name, summaries)}; see cats {prefix}--help")
    command = commands[name]
    parser = Parser(f"cats {prefix}{name}", command.HELP)
    command.add_arguments(parser)
    command.run(parser.parse(rest))
    return 0
