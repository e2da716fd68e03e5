"""How an optional extra of the package is installed, for messages. The package is on no index, so: from a clone."""

from __future__ import annotations


def install(extra: str) -> str:
    """The line of a shell that installs an extra of pyproject.toml, such as "nmt"."""
    return f"pip install '.[{extra}]'  # in a clone of CATS"
