"""Curves with a line for each method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cats.nmt.scoring.plots import methods
from cats.nmt.scoring.plots.runs import NothingToDraw, Runs, read_runs
from cats.nmt.scoring.plots.style import method_colour
from tests.nmt.scoring.plots.made import STEPS, lines_of, made_run, names_at_the_right, thin_lines, write_metrics

T1 = ("method.name=static", "sampling.temperature=1")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """cats with two seeds at levels 1 and 3, the second of which is not finished; T=1 with one seed at level 2."""
    return read_runs(
        [
            made_run(tmp_path / "cats-seed1", chrf=50.0, scores=True),
            made_run(tmp_path / "cats-seed2", seed=2, level=3.0, steps=STEPS[:3], scores=True),
            made_run(tmp_path / "T=1-seed1", *T1, level=2.0, scores=True),
        ]
    )


def test_losses(runs: Runs) -> None:
    figure = methods.losses(runs)
    train_low, train_high, valid_low, valid_high = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["LoRes", "HiRes", "", ""]
    assert [axis.get_ylabel() for axis in (train_low, valid_low)] == ["training NLL, nats", "validation NLL, nats"]
    # The mean over the seeds, as far as all are trained.
    assert lines_of(train_high)["cats"] == [[10, 3.0], [20, 2.5], [30, 2 + 0.333333]]
    assert lines_of(train_low)["T=1"] == [[10, 4.0], [20, 3.5], [30, 3.333333], [40, 3.25]]
    assert lines_of(valid_high) == {"cats": [[20, 5.0]], "T=1": [[20, 5.0], [40, 4.5]]}
    assert [thin_lines(axis) for axis in figure.axes] == [2, 2, 2, 2]  # the seeds of cats
    assert names_at_the_right(train_low) == [] and names_at_the_right(train_high) == ["T=1", "cats"]
    bold = [line for line in valid_high.get_lines() if line.get_label() == "cats"]
    assert [line.get_color() for line in bold] == [method_colour("cats")] and bold[0].get_marker() == "o"
    assert figure.get_supxlabel() == "thin lines: seeds; bold: their mean"


def test_validation_scores_over_updates_and_tokens(runs: Runs) -> None:
    figure = methods.scores(runs, "bleu")
    low_updates, low_tokens, high_updates, _ = figure.axes
    assert [axis.get_xlabel() for axis in (low_updates, low_tokens)] == ["update", "target tokens"]
    assert high_updates.get_ylabel() == "validation BLEU" and high_updates.get_title(loc="left") == "HiRes"
    assert lines_of(low_updates) == {"cats": [[20, 20]], "T=1": [[20, 20], [40, 40]]}
    assert lines_of(low_tokens)["T=1"] == [[600, 20], [1200, 40]]  # 300 tokens in each ten updates
    chrf = methods.scores(runs, "chrf")
    assert lines_of(chrf.axes[0])["T=1"] == [[20, 40], [40, 80]]
    nll = methods.scores(runs, "nll")
    assert lines_of(nll.axes[0])["T=1"] == [[20, 7.0], [40, 6.5]]


def test_runs_of_versions_that_did_not_count_tokens(tmp_path: Path) -> None:
    """The names of the lines are beside them, not beside an empty panel."""
    run = made_run(tmp_path / "run", chrf=50.0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_metrics(run, [{key: line[key] for key in line if key not in ("tokens", "examples")} for line in lines])
    axes = methods.scores(read_runs([run]), "nll").axes
    assert [axis.get_xlabel() for axis in axes] == ["update", "update"]
    assert [names_at_the_right(axis) for axis in axes] == [["cats"], ["cats"]]


def test_loss_against_the_examples_of_the_group(runs: Runs) -> None:
    low, high = methods.efficiency(runs).axes
    assert low.get_xlabel() == "sentence pairs of LoRes seen"
    assert lines_of(low)["T=1"] == [[40, 7.0], [80, 6.5]]  # two languages, ten pairs in each ten updates
    assert lines_of(high)["T=1"] == [[20, 5.0], [40, 4.5]]


def test_generalisation_gap(runs: Runs) -> None:
    low, high = methods.gap(runs).axes
    assert lines_of(high)["T=1"] == [[20, -2.5], [40, -2.25]]  # the validation NLL is twice that of training
    assert low.get_ylabel() == "training minus validation NLL, nats"


def test_forgetting(tmp_path: Path) -> None:
    pre = made_run(tmp_path / "a", "method.name=pretrain-finetune", "train.pretrain=ru", "train.pretrain_steps=15")
    runs = read_runs([pre, made_run(tmp_path / "b", *T1, level=2.0)])
    first, others = methods.forgetting(runs).axes
    assert [axis.get_title(loc="left") for axis in (first, others)] == ["trained first", "the others"]
    assert lines_of(first) == {"pretrain-finetune": [[20, 3.0], [40, 2.5]], "T=1": [[20, 5.0], [40, 4.5]]}
    assert lines_of(others)["pretrain-finetune"] == [[20, 5.0], [40, 4.5]]
    assert [15, 15] in [list(line.get_xdata()) for line in first.get_lines()]  # the reset
    assert first.get_ylim()[0] > 2  # that line does not stretch the axis


def test_the_high_losses_of_the_start_may_leave_the_picture(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", steps=range(1, 101))
    axis = methods.losses(read_runs([run])).axes[0]
    assert lines_of(axis)["cats"][0][1] > 6 and axis.get_ylim()[1] < 3.5


def test_one_unfinished_run_without_scores(tmp_path: Path) -> None:
    runs = read_runs([made_run(tmp_path / "a", "model.d_model=32", steps=STEPS[:1])])
    figure = methods.losses(runs)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["All", ""]
    assert lines_of(figure.axes[0]) == {"cats": [[10, pytest.approx(2 + 2 / 3)]]}
    assert figure.get_supxlabel() == ""  # there are no seeds to explain
    for draw, lacking in (
        (methods.gap, "no run has a validation yet"),
        (methods.efficiency, "no run has validations and the examples"),
        (lambda runs: methods.scores(runs, "bleu"), r"no run has a validation BLEU.*train\.validate_bleu"),
        (lambda runs: methods.scores(runs, "nll"), "no run has a validation yet"),
        (methods.forgetting, "no run trains some languages first"),
    ):
        with pytest.raises(NothingToDraw, match=lacking):
            draw(runs)


def test_methods_with_settings_have_their_own_dashes(tmp_path: Path) -> None:
    paths = [made_run(tmp_path / f"{d}-{seed}", f"model.d_model={d}", seed=seed) for d in (32, 64) for seed in (1, 2)]
    axis = methods.losses(read_runs(paths)).axes[0]
    assert sorted(lines_of(axis)) == ["cats, d_model=32", "cats, d_model=64"]
    assert thin_lines(axis) == 4
