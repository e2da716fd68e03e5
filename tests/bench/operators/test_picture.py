"""The roofline picture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.common.results import FOLDER, Provenance, from_json
from bench.operators import picture
from bench.operators.contender import BACKEND
from bench.operators.records import OperatorResults

pytest.importorskip("matplotlib")


def test_k_is_named_at_each_mark_of_a_backend() -> None:
    value = json.loads((FOLDER / "intel-xeon-2-50ghz-2-cores-2026-11-21.json").read_text())
    source, results = from_json(Provenance, value), from_json(OperatorResults, value)
    figure = picture.roofline(source, results)
    assert figure is not None
    (axes,) = figure.axes
    drawn = [c for c in results.cases if c.dtype == "float32" and c.layout == "flat" and c.best(BACKEND)]
    names = {(text.xy, text.get_text()) for text in axes.texts if hasattr(text, "xy")}
    for case in drawn:
        best = case.best(BACKEND)
        assert best is not None
        place = (
            case.operations / (case.bytes_read + case.bytes_written),
            case.operations / best.seconds.median / 1e9,
        )
        assert (place, str(case.tasks)) in names
        assert [*place] in [line.get_xydata()[0].tolist() for line in axes.get_lines()]
    assert len(names) == len({(c.operator, c.tasks, c.elements) for c in drawn})
    assert picture.roofline(source, replace(results, cases=[])) is None
