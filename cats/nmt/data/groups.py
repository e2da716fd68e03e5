"""Which tasks are LoRes, MidRes and HiRes: the groups whose macro-averages are reported."""

from __future__ import annotations

from collections.abc import Mapping

from cats.nmt.config.schema import Evaluate
from cats.nmt.errors import UserError, nearest


def task_groups(sizes: Mapping[str, int], config: Evaluate) -> dict[str, list[str]]:
    """Task names under "all", "lores", perhaps "midres", and "hires", by training pairs or as configured.

    Raises:
        UserError: a list names an unknown task or one that another list has; HiRes begins below LoRes' end.
    """
    lists = {"lores": config.lores, "midres": config.midres, "hires": config.hires}
    if any(lists.values()):
        named = [name for names in lists.values() for name in names]
        for name in named:
            if name not in sizes:
                raise UserError(f"evaluate: unknown task {name}{nearest(name, sizes)}; known: {', '.join(sizes)}")
            if named.count(name) > 1:
                raise UserError(f"evaluate: {name} stands in two groups")
        return {
            "all": list(sizes),
            **{group: list(names) for group, names in lists.items() if names or group != "midres"},
        }
    bound = config.lores_below or sum(sizes.values()) / max(1, len(sizes))
    if config.hires_from and config.hires_from < bound:
        raise UserError(f"evaluate.hires_from = {config.hires_from} is below LoRes' bound of {bound:,.0f} pairs")
    low = [name for name, size in sizes.items() if size < bound]
    middle = [name for name, size in sizes.items() if name not in low and size < config.hires_from]
    return {
        "all": list(sizes),
        "lores": low,
        **({"midres": middle} if config.hires_from else {}),
        "hires": [name for name in sizes if name not in low and name not in middle],
    }
