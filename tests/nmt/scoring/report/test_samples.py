"""cats.nmt.scoring.report.samples: which translations are shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cats.nmt.errors import UserError
from cats.nmt.scoring.report import samples
from cats.nmt.scoring.report.runs import ReportedRun, read
from cats.nmt.scoring.report.samples import choose
from tests.nmt.scoring.report.runs import REFERENCES, TRANSLATIONS, write_run
from tests.nmt.scoring.samples import cell


def both(tmp_path: Path) -> list[ReportedRun]:
    """A run, and one that translates ru worse."""
    worse = {**TRANSLATIONS, "ru": ["раз два три", *REFERENCES["ru"][1:7], "", *REFERENCES["ru"][8:]]}
    return read([write_run(tmp_path / "a"), write_run(tmp_path / "b", translations=worse)]).runs


def test_lines_are_evenly_spread_and_the_worst(tmp_path: Path) -> None:
    found = {each.task: each for each in choose(both(tmp_path), 6)}
    assert list(found) == ["ar", "az", "ru"]  # the smallest first
    ru = found["ru"]
    assert (ru.source, ru.target, ru.lines, ru.searched) == ("en", "ru", 12, 12)
    assert [each.number for each in ru.samples if not each.worst] == [1, 4, 7, 10]
    worst = [each for each in ru.samples if each.worst]
    assert worst[0].number == 8 and worst[0].mean_chrf == 50.0  # one of two runs has nothing, the other all of it
    assert worst[0].translations == {"a": REFERENCES["ru"][7], "b": ""} and worst[0].chrf == {"a": 100.0, "b": 0.0}
    assert len(worst) == 2
    assert next(each.number for each in found["az"].samples if each.worst) == 2  # line 1 is one of the others


def test_large_test_sets_are_searched_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tasks and two runs share what can be searched."""
    monkeypatch.setattr(samples, "_SEARCHED", 6 * 7)
    assert [(each.lines, each.searched) for each in choose(both(tmp_path), 6)] == [(12, 7)] * 3


def test_the_same_lines_whatever_the_runs_made_of_them(tmp_path: Path) -> None:
    one, two = both(tmp_path)

    def numbers(run: ReportedRun) -> list[int]:
        return [each.number for task in choose([run], 3) for each in task.samples if not each.worst]

    assert numbers(one) == numbers(two)


def test_runs_on_other_lines_are_apart(tmp_path: Path) -> None:
    one, two = both(tmp_path)
    path = two.path / "hyp" / "test.ru.src"
    path.write_text(path.read_text(encoding="utf-8").replace("source 3", "another"), encoding="utf-8")
    found = [(each.task, list(each.samples[0].translations)) for each in choose([one, two], 3)]
    assert found == [("ar", ["a", "b"]), ("az", ["a", "b"]), ("ru", ["a"]), ("ru", ["b"])]


def test_only_lines_of_the_headline_stratum(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", headline="new")
    for task in TRANSLATIONS:
        (run / "hyp" / f"test.{task}.stratum").write_text("old\n" * 6 + "new\n" * 6, encoding="utf-8")
    for task in choose(read([run]).runs, 6):
        assert task.lines == 6 and all(each.number > 6 for each in task.samples)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [("one-to-many", ("en", "az")), ("many-to-one", ("az", "en")), ("many-to-many", ("en", "az"))],
)
def test_languages_follow_from_the_direction(tmp_path: Path, direction: str, expected: tuple[str, str]) -> None:
    task = choose(read([write_run(tmp_path / "a", f"data.direction={direction}")]).runs, 1)[1]
    assert (task.source, task.target) == expected


def test_zero_shot_directions_come_last(tmp_path: Path) -> None:
    """They have no training pairs, and are where models answer in another language."""
    run = write_run(tmp_path / "a", "data.direction=many-to-many", zero_shot={"ar-ru": {**cell(1.0), "lines": 12}})
    for suffix in ("src", "ref", "txt"):
        shutil.copy(run / "hyp" / f"test.ru.{suffix}", run / "hyp" / f"test.ar-ru.{suffix}")
    found = choose(read([run]).runs, 3)
    assert [(each.task, each.source, each.target) for each in found][-2:] == [("ru", "en", "ru"), ("ar-ru", "ar", "ru")]
    assert len(found[-1].samples) == 3


def test_long_lines_are_cut(tmp_path: Path) -> None:
    long = {**TRANSLATIONS, "ru": ["я" * 10_000, *REFERENCES["ru"][1:]]}
    shown = choose(read([write_run(tmp_path / "a", translations=long)]).runs, 1)[2].samples[0].translations["a"]
    assert len(shown) < 1000 and shown.endswith("я…")


def test_changed_translations_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", files={"test.ar.txt": "0" * 64})
    with pytest.raises(UserError, match="has changed since it was scored"):
        choose(read([run]).runs, 3)
    assert json.loads((run / "scores.json").read_text(encoding="utf-8"))["files"]
