"""Series of numbers over the updates."""

from __future__ import annotations

import pytest

from cats.nmt.scoring.plots import series


def test_running_mean() -> None:
    points = [(float(i), float(i % 2)) for i in range(80)]
    smoothed = series.smooth(points)
    assert [step for step, _ in smoothed] == list(range(80))
    assert smoothed[40][1] == pytest.approx((0 + 1 + 0 + 1 + 0) / 5)  # two points on either side
    assert series.smooth(points[:3]) == points[:3]
    assert series.smooth([]) == []


def test_mean_of_curves_of_different_length() -> None:
    one, other = [(0.0, 0.0), (10.0, 10.0)], [(5.0, 1.0), (10.0, 2.0), (20.0, 4.0)]
    assert series.mean([one, other]) == [(0, 0.0), (5, 3.0), (10, 6.0), (20, 4.0)]
    assert series.mean([one, other], common=True) == [(5, 3.0), (10, 6.0)]
    assert series.mean_of_seeds([one, other]) == [(5, 3.0), (10, 6.0)]
    assert series.mean_of_seeds([one[:1], other[2:]]) == [(0, 0.0), (20, 4.0)]
    assert series.mean([one, []]) == series.mean_of_seeds([one, []]) == one
    assert series.mean([[], []]) == []


def test_difference_only_where_both_are_known() -> None:
    assert series.difference([(0, 0.0), (10, 10.0)], [(5, 1.0), (20, 1.0)]) == [(5, 4.0)]
    assert series.difference([], [(5, 1.0)]) == []


def test_what_was_seen() -> None:
    records = [
        {"step": 10, "losses": {"az": 1.0, "ru": None}, "tokens": {"az": 5, "ru": 7}, "examples": {"az": 1, "ru": 2}},
        {"step": 10, "valid": {"nll": {"az": 2.0}}},
        {"step": 20, "losses": {"ru": 1.0}, "tokens": {"ru": 3}, "examples": {"ru": 1}},
    ]
    assert series.seen(records, ["az", "ru"], "tokens") == [(10, 12), (20, 15)]
    assert series.seen(records, ["az"], "examples") == [(10, 1), (20, 1)]
    assert series.against([(15, 0.5)], [(10, 12), (20, 15)]) == [(13.5, 0.5)]
    assert series.against([(5, 0.5)], [(10, 12), (20, 15)]) == [(6.0, 0.5)]  # it starts at 0
    assert series.against([(20, 0.5), (25, 0.4)], [(10, 12), (20, 15)]) == [(15.0, 0.5)]  # and is not known after 20
    assert series.training_nll(records, "ru") == [(20, 1.0)]  # null is no point
    older = [{"step": 10, "losses": {"az": 1.0}, "tokens": {"az": 5}}]
    assert series.seen(older, ["az"], "examples") == []
    assert series.against([(5, 0.5)], []) == []
    resumed = [{"step": 10, "losses": {"az": 1.0}, "tokens": {"az": 5}, "examples": {"az": None}}]
    assert series.seen(resumed, ["az"], "examples") == []
