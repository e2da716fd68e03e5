"""How the commands report errors."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that prints an error as one line and exits with status 2."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(refuse(message))


def refuse(message: str) -> int:
    """Prints why the command does not run; returns the exit status 2."""
    print(f"bench: {message}", file=sys.stderr)
    return 2
