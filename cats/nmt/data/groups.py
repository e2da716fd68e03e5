"""The groups of tasks whose macro-averages are reported: LoRes, MidRes and HiRes (low, middle and high resource)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cats.nmt.config.schema import Evaluate
from cats.nmt.errors import UserError, unknown


def task_groups(sizes: Mapping[str, int], settings: Evaluate) -> dict[str, list[str]]:
    """The task names of each group, by number of training pairs or as the settings list them.

    Args:
        sizes: {task: training pairs}.

    Returns:
        Task names under "all", "lores", "midres" (if there is such a group) and "hires".

    Raises:
        UserError: a list names an unknown task or a task of another list, or the bound of HiRes is below that of LoRes.
    """
    lists = {"lores": settings.lores, "midres": settings.midres, "hires": settings.hires}
    if any(lists.values()):
        named = [name for names in lists.values() for name in names]
        for name in named:
            if name not in sizes:
                raise unknown("task", name, sizes, where="evaluate")
        if twice := [name for name, count in Counter(named).items() if count > 1]:
            raise UserError(f"evaluate: {twice[0]} is in two groups")
        return {
            "all": list(sizes),
            **{group: list(names) for group, names in lists.items() if names or group != "midres"},
        }
    bound = settings.lores_below or sum(sizes.values()) / max(1, len(sizes))
    if settings.hires_from and settings.hires_from < bound:
        raise UserError(f"evaluate.hires_from = {settings.hires_from} is below the bound of LoRes, {bound:,.0f} pairs")
    middle = max(bound, settings.hires_from)  # the bound of HiRes
    return {
        "all": list(sizes),
        "lores": [name for name, size in sizes.items() if size < bound],
        **({"midres": [n for n, size in sizes.items() if bound <= size < middle]} if settings.hires_from else {}),
        "hires": [name for name, size in sizes.items() if size >= middle],
    }
