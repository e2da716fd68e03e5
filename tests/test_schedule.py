"""Learning-rate schedules at their corner points."""

from __future__ import annotations

import pytest

from cats.nmt.schedule import learning_rate


def rate(step: int, schedule: str, warmup: int = 10) -> float:
    return learning_rate(step, peak=1.0, warmup=warmup, steps=110, schedule=schedule)


@pytest.mark.parametrize("schedule", ["inverse-sqrt", "cosine", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    assert [rate(step, schedule) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert rate(0, schedule, warmup=0) > 0.99


def test_inverse_square_root():
    assert rate(39, "inverse-sqrt") == pytest.approx(0.5)


def test_cosine_is_half_way_in_the_middle_and_zero_at_the_end():
    assert rate(59, "cosine") == pytest.approx(0.5)
    assert rate(109, "cosine") == pytest.approx(0.0, abs=1e-12)


def test_constant():
    assert rate(100, "constant") == 1.0
