"""Lines on standard error that tell a user what goes on. Nothing slow is imported here."""

from __future__ import annotations

import contextlib
import os
import sys


def tell(text: str) -> None:
    """Prints a line on standard error. If that fails, hours of work go on all the same.

    It fails if standard error is a log file on a full disk, or a pipe that nobody reads any more.
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def announce(text: str, *, quiet: bool = False) -> None:
    """Prints a line on standard error. Of the processes of torchrun, only the first one does."""
    if not quiet and os.environ.get("RANK", "0") == "0":
        tell(text)


def doing(text: str, *, quiet: bool = False) -> None:
    """Says what begins now, such as "reading my/corpus", to somebody who looks at a terminal.

    Every command does so before its first slow import. A log gets no such lines.
    """
    announce(text, quiet=quiet or not sys.stderr.isatty())
