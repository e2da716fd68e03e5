"""The targets, from results made by hand."""

from __future__ import annotations

import pytest

from bench.engines import targets
from bench.engines.contenders import CATS, ONE_PASS, SAMPLED, SEPARATE, TORCHJD
from bench.engines.records import EngineResults, Model

from .common import outer_step

MODELS = [Model("narrow", 10, 96, 40, 12, 50, "fp32"), Model("wide", 20, 256, 40, 12, 50, "fp32")]


def test_the_worst_case_of_each_target() -> None:
    steps = [
        outer_step(
            "narrow",
            8,
            {(ONE_PASS, CATS): (1.3, 100), (SAMPLED, CATS): (1.1, 100), (SEPARATE, CATS): (1.5, 60)}
            | {("a", TORCHJD): (5.2, 200), ("b", TORCHJD): (3.9, 900)},
            1.04,
        ),
        outer_step("narrow", 92, {(ONE_PASS, CATS): (1.32, 130), ("a", TORCHJD): (66.0, 900)}, 1.06),
        outer_step("wide", 2, {(ONE_PASS, CATS): (1.19, 105)}, 1.02),
        outer_step("wide", 32, {(ONE_PASS, CATS): (1.25, 100)}, 1.02),
    ]
    found = targets.evaluate(EngineResults("cpu", MODELS, steps, [], 0.0))
    assert [(t.value, t.met, t.worst) for t in found] == [
        (1.32, True, "narrow K=92"),
        (1.19, True, "wide K=2"),
        (1.1, True, "narrow K=8"),
        (1.5, False, "narrow K=8"),
        (1.06, False, "narrow K=92"),
        (1.3, False, "narrow K=92"),
        (1.3, False, "narrow K=92"),
        (pytest.approx(3.0), True, "narrow K=8"),
        (pytest.approx(50.0), True, "narrow K=92"),
    ]


def test_no_target_without_a_measurement() -> None:
    steps = [outer_step("narrow", 8, {("a", TORCHJD): (5.0, 100)}, 1.0)]
    assert [t.target for t in targets.evaluate(EngineResults("cpu", MODELS, steps, [], 0.0))] == [
        "training / plain training, m = 5"
    ]
