"""The runs that are scored as one model: members.json, in the folder of their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cats.nmt.files import atomic_write, read_file

_FILE = "members.json"


def write_members(out: Path, runs: Sequence[Path]) -> None:
    """Writes which runs the scores in a folder are of, in their order: the settings are those of the first one."""
    atomic_write(out / _FILE, json.dumps({"runs": _places(runs)}, indent=1) + "\n")


def has_members(out: Path, runs: Sequence[Path]) -> bool:
    """Whether the scores in a folder are of these runs, as far as they are written."""
    try:
        content = json.loads(read_file(out / _FILE))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return bool(content == {"runs": _places(runs)})


def _places(runs: Sequence[Path]) -> list[str]:
    return [str(path.resolve()) for path in runs]
