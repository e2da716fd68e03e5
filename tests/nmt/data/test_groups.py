"""Groups of tasks: by the mean, by bounds, by lists, and what is refused."""

from __future__ import annotations

import pytest

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.groups import task_groups
from cats.nmt.errors import UserError

SIZES = {"a": 10, "b": 20, "c": 30, "d": 100}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], {"lores": "abc", "hires": "d"}),
        (["evaluate.lores_below=20"], {"lores": "a", "hires": "bcd"}),
        (["evaluate.lores_below=20", "evaluate.hires_from=100"], {"lores": "a", "midres": "bc", "hires": "d"}),
        (["evaluate.hires_from=40"], {"lores": "abc", "midres": "", "hires": "d"}),
        (["evaluate.lores=c,a"], {"lores": "ca", "hires": ""}),
        (["evaluate.midres=c", "evaluate.hires=a"], {"lores": "", "midres": "c", "hires": "a"}),
    ],
)
def test_groups(settings: list[str], expected: dict[str, str]) -> None:
    found = task_groups(SIZES, apply_overrides(Config(), settings).evaluate)
    assert {group: "".join(names) for group, names in found.items()} == {"all": "abcd", **expected}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluate.lores=a,x"], "evaluate: unknown task x; known: a, b, c, d"),
        (["evaluate.lores=a", "evaluate.hires=b,a"], "evaluate: a is in two groups"),
        (["evaluate.hires_from=30"], "evaluate.hires_from = 30 is below the bound of LoRes, 40 pairs"),
    ],
)
def test_impossible_groups_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as info:
        task_groups(SIZES, apply_overrides(Config(), settings).evaluate)
    assert str(info.value) == message
