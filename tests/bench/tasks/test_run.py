"""The command `python -m bench.tasks`: trainings, tables and files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench import show
from bench.tasks import __main__ as command
from bench.tasks import run, tables
from bench.tasks.records import Training, WeightingResults
from cats import MultiTask
from cats.weighting import Static

NOISY, EQUAL = "regression, K=2, last task noisy", "regression, K=2, equal tasks"


@pytest.mark.usefixtures("short")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--problems", "K=2, ", "--seeds", "2", "--methods", "proximal", "GradNorm", "--out", str(tmp_path)]
    assert command.main(words) == 0
    printed = capsys.readouterr().out
    page, values = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    trainings = json.loads(values.read_text())["trainings"]
    assert len(trainings) == 5 * 3 * 2 and all(t["failure"] is None for t in trainings)
    assert all(math.isclose(sum(t["alpha"]), 1) and len(t["errors"]) == 2 for t in trainings)
    assert "| problem | equal | GradNorm | proximal |" in printed
    assert page.read_text() == printed == show.markdown(values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problems", "chess"], "no problem's name contains 'chess'"),
        (["--methods", "adam"], "there is no method 'adam'"),
        (["--seeds", "1"], "--seeds must be 2 to 10, not 1"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--out", "no/such/folder"], "no/such/folder is not a folder"),
    ],
)
def test_wrong_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench: {message}") and error.count("\n") == 1


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("weight", [0.0, 1e300])
def test_weights_that_nothing_can_be_trained_with(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lagrangian form can end with weights of 0, and with weights that are too large for float32."""
    method = "equal"
    monkeypatch.setitem(run.METHODS, method, lambda base, tasks, trial: MultiTask(base, tasks, Static(weight)))
    found = run.train(EQUAL, method, 0)
    if weight:
        assert found.failure and not found.errors and not found.alpha
    else:
        assert found.failure is None and found.alpha == [0, 0]


def trainings(problem: str, method: str, worst: Iterable[float | None]) -> list[Training]:
    return [
        Training(problem, method, n, [0.0, e], [0.9, 0.1]) if e else Training(problem, method, n, [], [], "overflow")
        for n, e in enumerate(worst)
    ]


def test_ratio_by_hand() -> None:
    """Ratios of 1, e and e²: the mean logarithm is 1, its standard error 1/√3, and Student's quantile 4.303."""
    ours = trainings("p", "m", [1, math.e, math.e**2])
    found = tables.ratio(ours, trainings("p", "equal", [1, 1, 1]))
    assert found is not None
    half = 4.303 / math.sqrt(3)
    assert [math.log(v) for v in (found.mean, found.low, found.high)] == pytest.approx([1, 1 - half, 1 + half])


def test_conclusions() -> None:
    results = WeightingResults(
        [
            *trainings(NOISY, "equal", [3, 3.1, 3.2]),
            *trainings(NOISY, "lagrangian", [3, None, 3]),
            *trainings(NOISY, "proximal", [0.5, 0.6, 0.5]),
            *trainings(EQUAL, "equal", [0.5, 0.6, 0.5]),
            *trainings(EQUAL, "lagrangian", [0.5, 0.6, 0.5]),
            *trainings(EQUAL, "proximal", [1.0, 1.21, 1.0]),
        ],
        1.0,
    )
    printed = tables.markdown(show_source(), results)
    assert f"| {NOISY} | 3.1 ± 0.1 | failed (1 of 3) | 0.533 ± 0.058 |" in printed
    assert f"| {NOISY} | failed | 0.17 (" in printed
    assert "| proximal | 2.01 | ≤ 1.7 | missed | regression, K=2, equal tasks |" in printed
    assert "| proximal | 0.171 | ≤ 0.333333 | met | regression, K=2, last task noisy |" in printed
    assert f"worse than equal weights beyond noise on:\n\n- {EQUAL}: 2.01" in printed


def show_source() -> Any:
    return command.provenance("bench.tasks", [])


@pytest.mark.usefixtures("short")
def test_losses_given_as_tensors_are_evaluated_again() -> None:
    training = run.train(EQUAL, "FAMO", 0)
    assert training.failure is None and training.alpha[0] != training.alpha[1]
