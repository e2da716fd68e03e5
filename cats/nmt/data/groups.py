"""The groups of tasks whose macro-averages are reported: LoRes, MidRes and HiRes (low, middle and high resource)."""

from __future__ import annotations

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
            if named.count(name) > 1:
                raise UserError(f"evaluate: {name} is in two groups")
        return {
            "all": list(sizes),
            **{group: list(names) for group, names in lists.items() if names or group != "midres"},
        }
    bound = settings.lores_below or sum(sizes.values()) / max(1, len(sizes))
    if settings.hires_from and settings.hires_from < bound:
        raise UserError(f"evaluate.hires_from = {settings.hires_from} is below the bound of LoRes, {bound:,.0f} pairs")
    low = [name for name, size in sizes.items() if size < bound]
    middle = [name for name, size in sizes.items() if name not in low and size < settings.hires_from]
    return {
        "all": list(sizes),
        "lores": low,
        **({"midres": middle} if settings.hires_from else {}),
        "hires": [name for name in sizes if name not in low and name not in middle],
    }
