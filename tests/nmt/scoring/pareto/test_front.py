"""cats.nmt.scoring.pareto.front, against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cats.nmt.scoring.pareto.front import dominated, hypervolume, interpolate, margins

SIDE = 6  # numbers of the points below are 0 to SIDE, so that ties are frequent
point = st.tuples(st.integers(0, SIDE), st.integers(0, SIDE))
points = st.lists(point, min_size=1, max_size=7)


def dominates(a, b) -> bool:
    return a != b and a[0] <= b[0] and a[1] <= b[1]


@settings(max_examples=50)
@given(points, points)
def test_dominated_points(some, others):
    found = dominated(np.array(some, float), np.array(others, float))
    assert found.tolist() == [any(dominates(other, each) for other in others) for each in some]


@settings(max_examples=50)
@given(points, point)
def test_hypervolume_is_the_number_of_dominated_squares(some, reference):
    squares = sum(any(x <= i and y <= j for x, y in some) for i in range(reference[0]) for j in range(reference[1]))
    assert hypervolume(np.array(some, float), reference) == squares


def test_hypervolume_of_a_known_front():
    assert hypervolume(np.array([[1, 3], [2, 2], [3, 1], [3, 3]]), (4, 4)) == 3 + 2 + 1
    assert hypervolume(np.array([[5.0, 0.0]]), (4, 4)) == 0


def lies_behind(p, front, most: float) -> bool:
    """Whether a point of the front, which goes on at its ends, is at least as good as p; pieces are tried densely."""
    places = np.linspace(0, 1, 241)[:, None]
    dense = np.concatenate([front[:1], *(a + places * (b - a) for a, b in itertools.pairwise(front))])
    left = min(map(tuple, front))
    down = min(map(tuple, front[:, ::-1]))[::-1]
    rays = [(left[0] - most, left[1]), (down[0], down[1] - most)]
    return bool((np.concatenate([dense, rays]) <= p + 1e-9).all(1).any())


@settings(max_examples=50)
@given(points, points)
def test_a_margin_is_what_both_numbers_must_grow_by_until_the_front_has_the_point(some, front):
    some, front = np.array(some, float), np.array(front, float)
    for p, margin in zip(some, margins(some, front), strict=True):
        assert lies_behind(p + margin + 2 * SIDE / 240, front, 3 * SIDE)
        assert not lies_behind(p + margin - 1e-6, front, 3 * SIDE)


def test_margins_of_known_points():
    front = np.array([[0.0, 2.0], [2.0, 0.0]])
    inside, behind, on_it = [0.5, 0.5], [2.0, 2.0], [1.0, 1.0]
    worse_than_the_end, better_than_the_end = [-1.0, 2.5], [-1.0, 1.75]
    found = margins(np.array([inside, behind, on_it, worse_than_the_end, better_than_the_end]), front)
    assert found.tolist() == [0.5, -1.0, 0.0, -0.5, 0.25]
    assert margins(np.array([[1.0, 1.0], [3.0, 1.0]]), np.array([[2.0, 2.0]])).tolist() == [1.0, -1.0]


def test_margins_of_many_fronts_at_once():
    random = np.random.default_rng(0)
    some, fronts = random.random((3, 4, 2)), random.random((3, 5, 2))
    assert np.array_equal(margins(some, fronts), [margins(*each) for each in zip(some, fronts, strict=True)])


def slope(left: float, right: float, before: float, after: float) -> float:
    """The derivative inside (Fritsch & Butland): the weighted harmonic mean of the slopes of the two neighbours."""
    if left * right <= 0:
        return 0.0
    return (3 * before + 3 * after) / ((2 * after + before) / left + (after + 2 * before) / right)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 99), min_size=4, max_size=6, unique=True), st.integers(0, 2**32 - 1))
def test_the_interpolation_is_a_cubic_with_the_slopes_of_fritsch_and_butland(percent, seed):
    ratios = np.array(sorted(percent)) / 100
    values = np.random.default_rng(seed).integers(0, 5, (3, len(ratios), 2)).astype(float)
    found = interpolate(ratios, values, 4)
    at = [math.log(ratio / (1 - ratio)) for ratio in ratios]
    a, b, c, d = at[:4]  # the piece between the second and the third ratio has both neighbours
    for number, axis in itertools.product(range(3), range(2)):
        y = values[number, :4, axis]
        slopes = [(y[i + 1] - y[i]) / (at[i + 1] - at[i]) for i in range(3)]
        ends = [slope(slopes[0], slopes[1], b - a, c - b), slope(slopes[1], slopes[2], c - b, d - c)]
        powers = np.array([[1, x, x**2, x**3] for x in (b, c)] + [[0, 1, 2 * x, 3 * x**2] for x in (b, c)])
        cubic = np.linalg.solve(powers, [y[1], y[2], *ends])
        for step in range(5):
            x = b + (c - b) * step / 4
            assert found[number, 4 + step, axis] == pytest.approx(cubic @ [1, x, x**2, x**3], abs=1e-5)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 99), min_size=2, max_size=6, unique=True), st.integers(0, 2**32 - 1))
def test_the_interpolation_never_leaves_the_range_of_its_neighbours(percent, seed):
    ratios = np.array(sorted(percent)) / 100
    values = np.random.default_rng(seed).integers(0, 5, (len(ratios), 2)).astype(float)
    found = interpolate(ratios, values, 4)
    assert np.array_equal(found[::4], values)  # the given points are on the curve
    for i, (first, last) in enumerate(itertools.pairwise(values)):
        piece = found[4 * i : 4 * i + 5]
        assert (piece >= np.minimum(first, last) - 1e-9).all() and (piece <= np.maximum(first, last) + 1e-9).all()


def test_between_the_ratios_the_curve_is_nearer_to_the_front_than_a_straight_line():
    def front(ratios):
        return np.stack([0.2 * ratios**-0.4, 0.15 * (1 - ratios) ** -0.4], -1)

    ratios = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    between = front(np.linspace(0.1, 0.9, 33))
    lines, curve = (margins(between, interpolate(ratios, front(ratios), steps)) for steps in (1, 8))
    assert lines.max() > 0.004 and np.abs(curve).max() < 0.001


def test_one_ratio_is_a_point():
    assert np.array_equal(interpolate([0.5], np.array([[1.0, 2.0]]), 8), [[1.0, 2.0]])
