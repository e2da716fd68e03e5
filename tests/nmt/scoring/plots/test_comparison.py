"""The picture of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cats.nmt.scoring.compare.results import Comparison, MethodResult, SeedScores, SetResult
from cats.nmt.scoring.plots import style
from cats.nmt.scoring.plots.comparison import comparison_figure, draw_comparison


def result(low: list[float], high: list[float]) -> MethodResult:
    chrf = {"lores": low, "hires": high}
    return MethodResult(
        groups={group: SeedScores([1.0], values, [1.0]) for group, values in chrf.items()},
        languages={},
        chrf_interval={group: (min(values), max(values)) for group, values in chrf.items()},
        seeds=[1, 2],
        seconds=[],
        peak_memory=[],
        untrained=[],
    )


@pytest.fixture
def comparison() -> Comparison:
    methods = {"cats": result([40.0, 44.0], [60.0, 62.0]), "T=1": result([30.0, 31.0], [70.0, 70.5])}
    found = SetResult({}, {"lores": ["az"], "hires": ["ru"]}, {}, methods)
    return Comparison([1, 2], "", {"ted": found, "all high": replace(found, groups={"hires": ["ru"]})}, {})


def test_means_and_seeds_of_each_method(comparison: Comparison) -> None:
    figure = comparison_figure(comparison)
    assert figure is not None
    (axis,) = figure.axes  # the set without LoRes has no panel
    means = {line.get_label(): line for line in axis.get_lines() if not str(line.get_label()).startswith("_")}
    assert {name: line.get_xydata().tolist() for name, line in means.items()} == {
        "cats": [[42.0, 61.0]],
        "T=1": [[30.5, 70.25]],
    }
    assert {name: line.get_markeredgecolor() for name, line in means.items()} == {
        name: style.method_colour(name) for name in means
    }
    assert [[40.0, 60.0], [44.0, 62.0]] in [line.get_xydata().tolist() for line in axis.get_lines()]
    assert {text.get_text() for text in axis.texts} == {"cats", "T=1"}


def test_scores_of_zero_have_no_axis_below_it(comparison: Comparison) -> None:
    nothing = replace(comparison.sets["ted"], methods={"cats": result([0.0, 0.0], [0.0, 0.0])})
    figure = comparison_figure(replace(comparison, sets={"ted": nothing}))
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_xlim()[0] == axis.get_ylim()[0] == 0.0


def test_at_most_two_sets_are_beside_each_other(comparison: Comparison) -> None:
    found = comparison.sets["ted"]
    figure = comparison_figure(replace(comparison, sets=dict.fromkeys(("ted", "wmt", "noisy"), found)))
    assert figure is not None
    assert [(axis.get_title(loc="left"), axis.get_subplotspec().colspan[0]) for axis in figure.axes] == [
        ("ted", 0),
        ("wmt", 1),
        ("noisy", 0),
    ]


def test_nothing_to_compare(comparison: Comparison, tmp_path: Path) -> None:
    draw_comparison(replace(comparison, sets={"all high": comparison.sets["all high"]}), tmp_path / "compare.png")
    assert not [*tmp_path.iterdir()]
