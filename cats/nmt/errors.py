"""Errors that are caused by the user's input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do. The exit status is 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean X?)", where X is the choice most similar to `word`, or "" if none is similar."""
    choices = list(choices)
    # The comparison ignores case: "Static" finds "static", and "AZ" finds "az".
    folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f" (did you mean {folded[found[0]]}?)" if found else ""
