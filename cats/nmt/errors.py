"""What the trainer raises when the mistake is the user's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, what to do. The command line exits with 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean X?)" with X the choice closest to `word`, or "" where nothing is close."""
    choices = list(choices)
    # Case is folded for the comparison only: "Static" is meant to find "static", and "AZ" to find "az".
    folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f" (did you mean {folded[found[0]]}?)" if found else ""
