"""Result files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.common import results


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write_json(path, {"a": [1.5, math.nan, ("x", math.inf)], "b": {"c": None, "ü": True}})
    assert json.loads(path.read_text()) == {"a": [1.5, None, ["x", None]], "b": {"c": None, "ü": True}}
    with pytest.raises(TypeError):
        results.write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"]["ü"] is True  # after a failure the old file is still there, and no other
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
