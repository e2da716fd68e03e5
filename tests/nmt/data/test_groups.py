"""Groups of tasks: by the mean, by bounds, by lists, and what is refused."""

from __future__ import annotations

import sys

import pytest

from cats.nmt.cli.main import main
from cats.nmt.config.schema import Config, Evaluate
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


class Name(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)  # type: ignore[arg-type]

    __hash__ = str.__hash__


@pytest.mark.parametrize("settings", [Evaluate(), Evaluate(hires_from=300), "lists"])
def test_the_time_grows_with_the_number_of_tasks_only(settings):
    """With a search of a list for every task, there were more than a hundred comparisons for each."""
    names = [Name(f"x{i}") for i in range(500)]
    if settings == "lists":
        settings = Evaluate(lores=tuple(names[:250]), hires=tuple(names[250:]))
    Name.compared = 0
    groups = task_groups({name: i for i, name in enumerate(names)}, settings)
    assert len(groups["lores"]) + len(groups["hires"]) <= 500 and Name.compared < 10 * 500


def test_reading_many_languages_takes_a_constant_time_for_each(tmp_path, capsys):
    def calls(count: int) -> int:
        """The function calls that `cats data inspect` makes for this number of languages."""
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            (folder / f"train.en-x{i}.en").write_text("a b\n")
            (folder / f"train.en-x{i}.x{i}").write_text("c d\n")
        found = 0

        def count_calls(_frame: object, event: str, _argument: object) -> None:
            nonlocal found
            found += event == "call"

        sys.setprofile(count_calls)
        try:
            assert main(["data", "inspect", str(folder)]) == 0
        finally:
            sys.setprofile(None)
        return found

    calls(1)  # imports
    assert calls(200) < 5 * calls(50)
