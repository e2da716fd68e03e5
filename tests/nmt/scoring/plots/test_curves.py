"""The curves of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cats.nmt.scoring.plots import curves
from cats.nmt.scoring.plots.runs import NothingToDraw, read_runs
from cats.nmt.scoring.plots.style import new_figure
from tests.nmt.scoring.plots.made import STEPS, TASKS, lines_of, made_run, names_at_the_right, write_metrics
from tests.nmt.scoring.samples import scores


def test_losses_of_a_run(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "losses": {"az": 2.0, "ru": 1.0}},
        {"step": 20, "losses": {"az": 1.5, "ru": 0.5}, "valid": {"nll": {"az": 3.0, "ru": 2.0}}},
    ]
    training, valid = curves.loss_figure(lines, scores()).axes
    assert [axis.get_title(loc="left") for axis in (training, valid)] == ["training (running mean)", "validation"]
    assert lines_of(training) == {"az": [[10, 2.0], [20, 1.5]], "ru": [[10, 1.0], [20, 0.5]]}
    assert lines_of(valid) == {"az": [[20, 3.0]], "ru": [[20, 2.0]]}
    assert names_at_the_right(training) == [] and names_at_the_right(valid) == ["az", "ru"]
    curves.draw_loss(lines, scores(), tmp_path / "loss.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "loss.svg"]


def test_losses_of_a_run_that_diverged() -> None:
    lines = [{"step": 10, "losses": {"az": 2.0}}, {"step": 20, "losses": {"az": None}, "valid": {"nll": {"az": None}}}]
    (axis,) = curves.loss_figure(lines, scores()).axes
    assert lines_of(axis) == {"az": [[10, 2.0]]}
    assert curves.loss_figure([{"step": 20, "losses": {"az": None}}], scores()).axes  # nothing at all


def test_a_task_that_is_not_scored_has_no_line() -> None:
    lines = [{"step": 10, "losses": {"az": 2.0, "new": 1.0}, "alpha": {"az": 0.5, "new": None}}]
    assert lines_of(curves.loss_figure(lines, scores()).axes[0]) == {"az": [[10, 2.0]]}
    assert lines_of(curves.alpha_figure(lines, scores()).axes[0]) == {"az": [[10, 1.0]]}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        ({"az": 0.999, "be": 0.001}, "log"),
        ({"az": 0.5, "be": 0.5}, "log"),
        ({"az": 1.0, "be": 0.0}, "linear"),
    ],
)
def test_extreme_weights(alpha: dict[str, float], scale: str) -> None:
    (axis,) = curves.alpha_figure([{"step": step, "alpha": alpha} for step in (10, 20)], scores()).axes
    assert lines_of(axis) == {name: [[10, value], [20, value]] for name, value in alpha.items()}
    assert axis.get_yscale() == scale
    assert [0.5, 0.5] in [list(line.get_ydata()) for line in axis.get_lines()]  # uniform weights


def test_weights_of_each_method(tmp_path: Path) -> None:
    paths = [made_run(tmp_path / f"cats-seed{seed}", seed=seed, chrf=50.0) for seed in (1, 2)]
    fixed = made_run(tmp_path / "T=1-seed1", "method.name=static")
    lines = [json.loads(line) for line in (fixed / "metrics.jsonl").read_text().splitlines()]
    write_metrics(fixed, [{**line, "alpha": dict.fromkeys(TASKS, 1.0)} for line in lines])
    (axis,) = curves.alphas(read_runs([*paths, fixed])).axes  # the weights of T=1 never change
    assert axis.get_title(loc="left") == "cats"
    found = lines_of(axis)
    assert {*found} == {*TASKS} and names_at_the_right(axis) == sorted(TASKS)
    assert found["az"] == [[step, round((1 + step / 100) / (3 + step / 100), 6)] for step in STEPS]
    with pytest.raises(NothingToDraw, match="no run has weights that change"):
        curves.alphas(read_runs([fixed]))


def test_examples_seen_of_each_language(tmp_path: Path) -> None:
    first, second = made_run(tmp_path / "a", chrf=50.0), made_run(tmp_path / "b", "method.name=static")
    one, other = curves.examples(read_runs([first, second])).axes
    assert [axis.get_title(loc="left") for axis in (one, other)] == ["cats", "T=3"]
    assert lines_of(one)["ru"] == [[10, 10], [20, 20], [30, 30], [40, 40]] and one.get_yscale() == "log"
    older = [{"step": 10, "losses": {"ru": 1.0}, "alpha": {"ru": 1.0}, "tokens": {"ru": 5}, "seconds": 1.0}]
    write_metrics(first, older)
    with pytest.raises(NothingToDraw, match="train it again"):
        curves.examples(read_runs([first]))


def test_lines_of_the_languages_and_their_names() -> None:
    _, (axis,) = new_figure(1)
    found = {"be": [(10.0, 2.0), (20.0, 1.0)], "new": [], "ru": [(10.0, 3.0)]}
    curves.draw_languages(axis, found, {"lores": ["be"], "hires": ["ru"]})
    assert lines_of(axis) == {"be": [[10, 2], [20, 1]], "ru": [[10, 3]]}
    assert [line.get_linestyle() for line in axis.get_lines()] == ["-", "--"] and axis.get_xlim() == (0, 20)
    many = {f"l{i:02}": [(10.0, float(i))] for i in range(30)}
    _, (axis,) = new_figure(1)
    curves.draw_languages(axis, many, {"lores": [*many][:20], "hires": [*many][20:]})
    assert lines_of(axis) == {"LoRes": [[10, 9.5]], "HiRes": [[10, 24.5]]} and len(axis.get_lines()) == 32
    _, (axis,) = new_figure(1)
    curves.draw_languages(axis, many, {"all": [*many]})  # a run without scores and checkpoints
    assert lines_of(axis) == {"All": [[10, 14.5]]}
