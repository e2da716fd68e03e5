"""cats.nmt.scoring.pareto.results: front.json is read as it was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cats.nmt.errors import UserError
from cats.nmt.scoring.pareto.results import Fronts, read_fronts
from tests.nmt.scoring.pareto.made import made_fronts


def test_front_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    fronts = made_fronts(count=2)
    point = fronts.fronts[0].methods["T=3"].points[0]
    full = dataclasses.replace(
        point, missing=[3], diverged=[4], chosen={"train.lr": "0.1"}, dominated_by=["static 0.2"]
    )
    fronts.fronts[0].methods["T=3"].points[0] = dataclasses.replace(full, outside=True)
    (tmp_path / "front.json").write_text(json.dumps(fronts.to_json()), encoding="utf-8")
    assert read_fronts(tmp_path) == fronts


@pytest.mark.parametrize(
    "change", [{"metric": "ter"}, {"fronts": [1]}, {"seeds": None}, {"points": []}, {"low": [1.0]}]
)
def test_a_damaged_file_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    content = made_fronts().to_json()
    target = content["fronts"][0]["methods"]["T=3"]["points"][0] if "low" in change else content
    if "points" in change:
        target["fronts"][0]["methods"]["T=3"] = change
    else:
        target.update(change)
    (tmp_path / "front.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"front\.json is damaged or of another version; make it again with: cats pareto"
    ):
        read_fronts(tmp_path)
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        Fronts.from_json(content)
