"""Learning-rate schedules at selected updates."""

from __future__ import annotations

import pytest

from cats.nmt.training.schedule import learning_rate


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


def test_the_warm_up_may_start_above_zero():
    rates = [learning_rate(s, peak=1.0, warmup=10, steps=110, schedule="constant", start=0.5) for s in (0, 4, 9, 50)]
    assert rates == pytest.approx([0.55, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("step", [0, 100, 3999, 4000, 100_000])
def test_noam(step):
    """lr * d^-1/2 * min((s + 1) * warmup^-3/2, (s + 1)^-1/2), with a maximum of 7.0e-4 for the base Transformer."""
    expected = 512**-0.5 * min((step + 1) * 4000**-1.5, (step + 1) ** -0.5)
    found = learning_rate(step, peak=1.0, warmup=4000, steps=500_000, schedule="noam", d_model=512)
    assert found == pytest.approx(expected, rel=1e-12)
    assert step != 3999 or found == pytest.approx(7.0e-4, rel=0.01)


def test_constant():
    assert rate(100, "constant") == 1.0
