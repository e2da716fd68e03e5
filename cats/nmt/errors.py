"""Errors that are caused by the user's input, and the commands that messages name."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

_SHOWN = 100  # the most names that a message lists


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do. The exit status is 2."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, when the user has been told how to go on: the command line says nothing more."""


def command(*words: str | Path) -> str:
    """Return a command of `cats` as a shell reads it: with quotes around what has spaces or special characters."""
    return shlex.join(["cats", *map(str, words)])


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean X?)", where X is the choice most similar to `word`, or "" if none is similar."""
    choices = list(choices)
    # The comparison ignores case: "Static" finds "static", and "AZ" finds "az".
    folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f" (did you mean {folded[found[0]]}?)" if found else ""


def unknown(kind: str, name: str, known: Iterable[str], *, where: str = "") -> UserError:
    """Return the error for a name that is not among the known ones.

    Args:
        kind: what is named, such as "task".
        where: the start of the message, such as the folder or the setting with the name.
    """
    known = list(known)
    prefix = f"{where}: " if where else ""
    more = f" and {len(known) - _SHOWN:,} more" if len(known) > _SHOWN else ""
    shown = ", ".join(known[:_SHOWN])
    return UserError(f"{prefix}unknown {kind} {name}{nearest(name, known)}; known: {shown}{more}")
