"""The picture of what the engines cost."""

from __future__ import annotations

import json

import pytest

from bench.common.results import FOLDER, Provenance, from_json
from bench.engines import picture
from bench.engines.records import EngineResults

pytest.importorskip("matplotlib")


def test_time_and_memory_of_every_contender() -> None:
    value = json.loads((FOLDER / "amd-epyc-2-cores-2026-11-29-engines.json").read_text())
    source, results = from_json(Provenance, value), from_json(EngineResults, value)
    axes = picture.costs(source, results).axes
    steps = [step for step in results.outer_steps if step.model == results.models[0].name]
    names = {c.name for step in steps for c in step.contenders}
    for panel, value_of in ((axes[0], picture.time), (axes[3], picture.memory)):
        lines = {str(line.get_label()): line for line in panel.get_lines()}
        assert names <= lines.keys()
        for name in names:
            expected = [[step.tasks, value_of(step, c)] for step in steps for c in step.contenders if c.name == name]
            assert lines[name].get_xydata().tolist() == sorted(expected)
    looks = {(line.get_color(), line.get_marker()) for line in axes[0].get_lines() if line.get_label() in names}
    assert len(looks) == len(names)
    assert {text.get_text() for text in axes[2].texts} == {model.name for model in results.models}
