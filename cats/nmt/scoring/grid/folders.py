"""The runs in a folder, such as one that `cats compare` or `cats pareto` has filled.

OUT/SET/METHOD-seedN                    of cats compare
OUT/SET/LOW-HIGH/ratio-R/METHOD-seedN   of cats pareto
OUT/SET/LOW-HIGH/METHOD-seedN           of cats pareto: a method with a mixture of its own
The trials of the methods are in folders tuning/ beside the runs; they are no results.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_DEEPEST = 4  # folders between the one that is given and the runs, the runs included


def runs_in(folder: Path) -> list[Path]:
    """The run directories in a folder and its folders, in the order of their names, without trials."""
    patterns = ["*/" * depth + "config.toml" for depth in range(1, _DEEPEST + 1)]
    found = {config.parent for pattern in patterns for config in folder.glob(pattern)}
    return sorted(path for path in found if path.parent.name != "tuning")


def by_set(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """The runs that paths stand for, those that can be drawn together under one name.

    Args:
        paths: run directories, which are together under the name "", and folders of them, where the name is that of
            the set, or SET/LOW-HIGH. A folder without runs counts as a run directory.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        inside = [] if (path / "config.toml").is_file() else runs_in(path)
        for run in inside or [path]:
            parts = run.relative_to(path).parts[:-1]
            if parts and parts[-1].startswith("ratio-"):
                parts = parts[:-1]
            found.setdefault("/".join(parts), []).append(run)
    return found
