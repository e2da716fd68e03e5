"""What is translated and scored: section evaluate."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import COUNT, PAIRS, setting


@dataclass(frozen=True)
class Evaluate:
    """Which lines are translated and scored, and the groups of tasks whose macro-averages are reported."""

    search: str = setting(
        "beam",
        "beam (of the size decode.beam), greedy, or none: no translation, only the NLL of the validation text",
        choices=("beam", "greedy", "none"),
    )
    lines: int = setting(
        0, "translate only this many lines of each task, evenly spread, the same in every run; 0: all", need=COUNT
    )
    strata: str = setting(
        "all",
        "translate all lines, or only those of the stratum that results are reported on",
        choices=("all", "headline"),
    )
    baseline: bool = setting(True, "compute the nearest-neighbour baseline, too")
    lores_below: int = setting(
        0, "tasks with fewer training pairs than this are LoRes; 0: with fewer than the mean", need=PAIRS
    )
    hires_from: int = setting(
        0,
        "tasks with at least this many pairs are HiRes, the rest MidRes; 0: all tasks that are not LoRes are HiRes",
        need=PAIRS,
    )
    lores: tuple[str, ...] = setting((), "names of the LoRes tasks; a list for any group replaces the two bounds")
    midres: tuple[str, ...] = setting((), "names of the MidRes tasks")
    hires: tuple[str, ...] = setting((), "names of the HiRes tasks")
