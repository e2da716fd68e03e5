"""cats.nmt.scoring.pareto.results: front.json is read as it was written."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from cats.nmt.errors import UserError
from cats.nmt.scoring.pareto.results import Fronts, LostPoint, read_fronts
from tests.nmt.scoring.pareto.made import made_fronts


def test_front_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    fronts = made_fronts(count=2)
    point = fronts.fronts[0].methods["T=3"].points[0]
    full = dataclasses.replace(
        point, missing=[3], diverged=[4], chosen={"train.lr": "0.1"}, dominated_by=["static 0.2"]
    )
    fronts.fronts[0].methods["T=3"].points[0] = dataclasses.replace(full, outside=True)
    fronts.fronts[0].lost.append(LostPoint("T=3", 0.3, [1], [2]))
    lost = [LostPoint("static", 0.2, [1, 2], [])]
    fronts.fronts.append(dataclasses.replace(fronts.fronts[0], methods={}, curve=[], not_run=["static"], lost=lost))
    (tmp_path / "front.json").write_text(json.dumps(fronts.to_json()), encoding="utf-8")
    assert read_fronts(tmp_path) == fronts


def test_front_json_of_an_earlier_version_names_no_lost_points(tmp_path: Path) -> None:
    content = made_fronts().to_json()
    del content["fronts"][0]["lost"]
    (tmp_path / "front.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_fronts(tmp_path) == made_fronts()


def test_what_is_no_text_is_a_question_mark() -> None:
    content = made_fronts().to_json()
    content["fronts"][0]["set"] = "a\udcff"  # from the name of a folder
    assert Fronts.from_json(content).fronts[0].set == "a?"


FRONT = ("fronts", 0)
METHOD = (*FRONT, "methods", "T=3")
POINT = (*METHOD, "points", 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("metric",), "ter"),
        (("seeds",), None),
        (("seeds",), [math.inf]),
        (("settings",), 1),
        (("fronts",), []),
        (("fronts",), [1]),
        ((*FRONT, "methods"), {}),
        ((*FRONT, "not_run"), [1]),
        ((*FRONT, "curve"), [[math.nan, 1.0]]),
        ((*FRONT, "lost"), [{"method": "cats"}]),
        ((*FRONT, "methods", "static", "points", 0, "ratio"), None),
        ((*METHOD, "points"), []),
        ((*METHOD, "gain"), []),
        ((*METHOD, "hypervolume"), 10**400),
        ((*POINT, "low"), [1.0]),
        ((*POINT, "low"), [1.0, math.inf]),
        ((*POINT, "low"), [1e308, 1e308]),
        ((*POINT, "diverged"), 5),
        ((*POINT, "missing"), [1, "a"]),
        ((*POINT, "dominated_by"), [1]),
        ((*POINT, "chosen"), ["a"]),
    ],
    ids=str,
)
def test_a_damaged_file_is_one_line(tmp_path: Path, place: tuple[Any, ...], value: object) -> None:
    content = target = made_fronts().to_json()
    for key in place[:-1]:
        target = target[key]
    assert place[-1] in target
    target[place[-1]] = value
    (tmp_path / "front.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"front\.json is damaged or of another version; make it again with: cats pareto"
    ):
        read_fronts(tmp_path)
    with pytest.raises((ValueError, OverflowError, LookupError, TypeError, AttributeError)):
        Fronts.from_json(content)
