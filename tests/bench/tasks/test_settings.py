"""The pictures of what the settings do, and the command that draws them."""

from __future__ import annotations

import math
from json import loads
from pathlib import Path
from typing import Any

import pytest

from bench import show
from bench.tasks import pictures
from bench.tasks import settings as command
from bench.tasks.methods import METHODS, SETTINGS, setting


def at_rest(norm: float, strength: float, floor: float, prior: float) -> float:
    """α of the second task, with a prior for it, by bisection: softmax(log π − κ r) with r_n = v_n / ‖ḡ‖²."""
    low, high = 0.0, 1.0
    for _ in range(60):
        alpha = (low + high) / 2
        v = 1 - alpha, alpha * norm**2
        total = (1 - alpha) * v[0] + alpha * v[1]
        terms = (1 - prior) * math.exp(-strength * v[0] / total), prior * math.exp(-strength * v[1] / total)
        wanted = (1 - floor) * terms[1] / sum(terms) + floor * prior
        low, high = (alpha, high) if wanted > alpha else (low, alpha)
    return low


@pytest.mark.parametrize(
    ("norm", "strength", "floor", "prior"), [(4.0, 0.5, 0.0, 0.5), (0.5, 2.0, 0.3, 0.5), (2.0, 1.0, 0.1, 0.25)]
)
def test_the_rule_comes_to_rest_where_it_should(norm: float, strength: float, floor: float, prior: float) -> None:
    found = pictures.alphas(norm, inner_steps=1, strength=strength, floor=floor, prior=[1 - prior, prior])
    assert found[0] == pytest.approx(prior, rel=1e-15)
    # Each update goes a tenth of the way or more: 0.9^300 is 2e-14. The rest is rounding.
    assert found[-1] == pytest.approx(at_rest(norm, strength, floor, prior), rel=1e-9)


def test_every_value_is_a_method() -> None:
    assert {setting(name, value) for name, values in SETTINGS.items() for value in values} < set(METHODS)


@pytest.mark.usefixtures("short")
def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pictures, "NORMS", [0.5, 2.0])
    monkeypatch.setattr(pictures, "STEPS", 5)
    monkeypatch.setattr(pictures, "label_ends", lambda *axes: None)  # laying out takes most of the time
    for module in (pictures, command):
        monkeypatch.setattr(module, "SETTINGS", {name: values[:1] for name, values in SETTINGS.items()})
    drawn: dict[Path, Any] = {}
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.update({path: figure}))
    folders = tmp_path / "results", tmp_path / "pictures"
    for folder in folders:
        folder.mkdir()
    assert command.main(["--seeds", "2", "--out", str(folders[0]), "--pictures", str(folders[1])]) == 0
    (file,) = folders[0].glob("*-settings.json")
    assert show.markdown(file) == capsys.readouterr().out
    rule, error = (drawn[folders[1] / f"settings-{name}.png"] for name in ("rule", "error"))
    titles = [axis.get_title("left").split(" ")[0] for axis in rule.axes]
    assert titles == ["strength", "floor", "prior", "inner_steps"]
    assert [axis.get_xlabel() for axis in error.axes] == list(SETTINGS)
    trainings = {(t["problem"], t["method"], t["seed"]): max(t["errors"]) for t in loads(file.read_text())["trainings"]}
    noisy = pictures.PROBLEMS["one task noisy"]
    for axis in error.axes:
        line = next(each for each in axis.get_lines() if each.get_label() == "one task noisy")
        values = [text.get_text() for text in axis.get_xticklabels()]
        place = next(i for i, value in enumerate(values) if (noisy, f"{axis.get_xlabel()}={value}", 0) in trainings)
        method = f"{axis.get_xlabel()}={values[place]}"
        logs = [math.log(trainings[noisy, method, seed] / trainings[noisy, "equal", seed]) for seed in (0, 1)]
        assert line.get_ydata()[place] == pytest.approx(math.exp(sum(logs) / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1"], "--seeds must be 2 to 10, not 1"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--out", "no/such/folder"], "no/such/folder is not a folder"),
        (["--pictures", "no/such/folder"], "no/such/folder is not a folder"),
    ],
)
def test_wrong_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    assert capsys.readouterr().err == f"bench: {message}\n"
