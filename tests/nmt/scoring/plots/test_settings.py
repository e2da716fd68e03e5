"""Results against a setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from cats.nmt.scoring.plots import settings
from cats.nmt.scoring.plots.runs import NothingToDraw, Runs, read_runs
from cats.nmt.scoring.plots.style import HIDDEN
from tests.nmt.scoring.plots.made import lines_of, made_run, names_at_the_right

SIZE = "model.d_model"


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """cats with two widths and two seeds, T=1 with one of each."""
    paths = [
        made_run(tmp_path / f"d{d}-seed{seed}", f"{SIZE}={d}", seed=seed, level=level, chrf=d + 2.0 * seed)
        for d, seed, level in ((16, 1, 1.0), (16, 2, 2.0), (64, 1, 3.0), (64, 2, 5.0))
    ]
    static = ("method.name=static", "sampling.temperature=1")
    return read_runs([*paths, made_run(tmp_path / "t", *static, f"{SIZE}=64")], against=SIZE)


def test_mean_and_spread_over_seeds(runs: Runs) -> None:
    figure = settings.against(runs, SIZE, "nll")
    low, high = figure.axes
    # The best validation is that after 20 updates: twice the level + 0.5.
    assert lines_of(high) == {"cats": [[16, 4.0], [64, 9.0]], "T=1": [[64, 3.0]]}
    assert lines_of(low)["cats"] == [[16, 6.0], [64, 11.0]]  # 1 more, twice
    dots = [(line.get_label(), *line.get_xydata().tolist()) for line in high.get_lines()]
    for seed, x, y in ((1, 16, 3.0), (2, 16, 5.0), (1, 64, 7.0), (2, 64, 11.0)):
        assert (f"{HIDDEN}cats, seed {seed}", [x, y]) in dots
    bars = [segment.tolist() for each in high.collections for segment in each.get_segments()]
    assert [[16, pytest.approx(4 - 2**0.5)], [16, pytest.approx(4 + 2**0.5)]] in bars  # ± the standard deviation
    assert [high.get_xlabel(), low.get_ylabel()] == [SIZE, "validation NLL of the best model, nats"]
    assert high.get_xscale() == "log" and [text.get_text() for text in high.get_xticklabels()] == ["16", "64"]
    assert names_at_the_right(high) == ["T=1", "cats"]


def test_test_scores(runs: Runs) -> None:
    low, _ = settings.against(runs, SIZE, "chrf").axes
    assert lines_of(low) == {"cats": [[16, 19.0], [64, 67.0]]}  # T=1 is not evaluated
    assert lines_of(settings.against(runs, SIZE, "bleu").axes[0])["cats"] == [[16, 9.5], [64, 33.5]]


def test_forgetting_against_the_length_of_pre_training(tmp_path: Path) -> None:
    key, paths = "train.pretrain_steps", []
    for n in (10, 30):
        path = made_run(tmp_path / str(n), "method.name=pretrain-finetune", "train.pretrain=ru", f"{key}={n}")
        text = (path / "metrics.jsonl").read_text().replace('"ru": 2.5', f'"ru": {3 + n}')  # the last validation
        (path / "metrics.jsonl").write_text(text)
        paths.append(path)
    (axis,) = settings.against(read_runs(paths, against=key), key, "forgetting").axes
    assert lines_of(axis) == {"pretrain-finetune": [[10, 10.0], [30, 30.0]]}
    assert axis.get_title(loc="left") == "trained first" and axis.get_xscale() == "linear"


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    key = "sampling.temperature"
    paths = [made_run(tmp_path / t, f"{key}={t}", chrf=50.0) for t in ("inf", "1.5")]
    axis = settings.against(read_runs(paths, against=key), key, "chrf").axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1.5", "inf"]
    assert lines_of(axis) == {"cats": [[0, 50.0], [1, 50.0]]}


def test_nothing_to_draw(tmp_path: Path) -> None:
    runs = read_runs([made_run(tmp_path / "a", steps=[10])], against=SIZE)
    for measure, lacking in (("nll", "no run has a validation yet"), ("bleu", "no run is evaluated with BLEU")):
        with pytest.raises(NothingToDraw, match=lacking):
            settings.against(runs, SIZE, measure)
