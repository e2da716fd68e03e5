"""The picture of trade-off fronts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from cats.nmt.scoring.plots.front import fronts_figure
from cats.nmt.scoring.plots.style import method_colour
from tests.nmt.scoring.pareto.made import made_fronts


@pytest.mark.parametrize("metric", ["nll", "chrf"])
def test_every_method_is_drawn_with_its_name_its_points_and_the_static_front(metric):
    figure = fronts_figure(made_fronts(metric))
    (axis,) = figure.axes
    texts = {text.get_text() for text in axis.texts}
    assert {"static", "restart", "T=3", "0.2", "0.8"} <= texts
    names = {"nll": "validation NLL", "chrf": "chrF"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == (f"hires {names[metric]}", f"az {names[metric]}")
    lines = {tuple(map(tuple, np.round(line.get_xydata(), 3))): line for line in axis.get_lines()}
    assert lines[(1.01, 2.01), (2.01, 1.01)].get_linestyle() == "None"  # the curve is the line of static ratios
    assert lines[(1.01, 2.11), (2.01, 1.21)].get_color() == method_colour("restart")
    assert ((1.0, 2.0), (1.3, 1.3), (2.0, 1.0)) in lines
    # What is shaded is worse than the front on both sides: above and right of it for losses, else below and left.
    shaded = axis.collections[0].get_paths()[0]
    assert shaded.contains_point((1.7, 1.7)) == (metric == "nll")
    assert shaded.contains_point((1.1, 1.1)) == (metric == "chrf")


def test_several_fronts_are_below_each_other_and_one_without_static_ratios_is_drawn():
    found = made_fronts(count=2)
    del found.fronts[0].methods["static"]
    found.fronts[0].curve.clear()
    axes = fronts_figure(found).axes
    assert len({axis.get_position().y0 for axis in axes}) == 2 and len({axis.get_position().x0 for axis in axes}) == 1
    assert {text.get_text() for text in axes[0].texts} == {"restart", "T=3"}
