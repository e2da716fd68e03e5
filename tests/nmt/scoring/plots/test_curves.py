"""The curves of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cats.nmt.scoring.plots import curves
from tests.nmt.scoring.samples import cell, png_size, scores


def test_pictures_of_a_run_that_diverged(tmp_path: Path) -> None:
    lines = [{"step": 10, "losses": {"az": 2.0}}, {"step": 20, "losses": {"az": None}, "valid": {"nll": {"az": None}}}]
    curves.draw_loss(lines, scores(), tmp_path / "loss.png")
    assert png_size(tmp_path / "loss.png")[0] > 0


def test_pictures_of_a_task_that_is_not_scored(tmp_path: Path) -> None:
    lines = [{"step": 10, "losses": {"az": 2.0, "new": 1.0}, "alpha": {"az": 0.5, "new": None}}]
    curves.draw_loss(lines, scores(), tmp_path / "loss.png")
    curves.draw_alpha(lines, scores(), tmp_path / "alpha.png")
    assert png_size(tmp_path / "loss.png")[0] > 0 and png_size(tmp_path / "alpha.png")[0] > 0


def test_pictures_of_many_languages_and_of_weights_at_zero(tmp_path: Path) -> None:
    names = [f"l{i:02}" for i in range(30)]
    many = scores(
        languages={name: cell(50.0, pairs=10 + i) for i, name in enumerate(names)},
        groups={"all": cell(50.0, languages=names), "lores": cell(50.0, languages=names[:20])},
    )
    records = [
        {
            "step": step,
            "losses": {n: 1.0 + i for i, n in enumerate(names)},
            "alpha": {n: i % 2 for i, n in enumerate(names)},
        }
        for step in (10, 20)
    ]
    curves.draw_loss(records, many, tmp_path / "loss.png")
    curves.draw_alpha(records, many, tmp_path / "alpha.png")
    assert png_size(tmp_path / "loss.png")[0] > 900 and png_size(tmp_path / "alpha.png")[0] > 900


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("alpha", [{"az": 0.999, "be": 0.001}, {"az": 0.5, "be": 0.5}, {"az": 1.0, "be": 0.0}])
def test_pictures_of_extreme_weights(alpha: dict[str, float], tmp_path: Path) -> None:
    records = [{"step": step, "alpha": alpha} for step in (10, 20)]
    curves.draw_alpha(records, scores(), tmp_path / "alpha.png")
    assert png_size(tmp_path / "alpha.png")[0] > 900


def test_running_mean() -> None:
    points = [(i, float(i % 2)) for i in range(80)]
    smoothed = curves._smooth(points)
    assert [step for step, _ in smoothed] == list(range(80))
    assert smoothed[40][1] == pytest.approx((0 + 1 + 0 + 1 + 0) / 5)  # two points on either side
    assert curves._smooth(points[:3]) == points[:3]
