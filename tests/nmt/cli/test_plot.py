"""`cats plot`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from cats.nmt.cli.main import main
from tests.nmt.scoring.pareto.made import made_fronts
from tests.nmt.scoring.plots.made import made_run
from tests.nmt.scoring.samples import png_size


def test_pictures_of_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    new, run, out = made_run(tmp_path / "new", steps=[]), made_run(tmp_path / "run"), tmp_path / "out"
    assert main(["plot", str(new), str(run), "--out", str(out), "--pictures", "loss"]) == 0
    printed = capfd.readouterr()
    assert printed.out == f"{out}/loss.png, loss.svg, loss.csv\n"
    assert printed.err == f"cats: {new} has no metrics yet; left out\n"
    assert sorted(path.name for path in out.iterdir()) == ["loss.csv", "loss.png", "loss.svg"]
    assert png_size(out / "loss.png")[0] > 900


def test_all_pictures_that_there_are_data_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cats.nmt.scoring.plots.style.save_figure", lambda figure, path: [path, path])
    run, out = made_run(tmp_path / "run"), tmp_path / "out"
    assert main(["plot", str(run), "--out", str(out)]) == 0
    printed = capfd.readouterr()
    names = [Path(line.partition(",")[0]).name for line in printed.out.splitlines()]
    assert names == ["loss", "nll", "gap", "examples", "efficiency", "alpha"]
    lacking = "bleu, chrf, forgetting, curvature, similarity, layers"
    assert printed.err == f"cats: the runs have no data for {lacking}; --pictures NAME says what it needs\n"
    assert main(["plot", str(run), "--out", str(out), "--against", "model.d_model"]) == 0
    assert (
        capfd.readouterr().out
        == f"{out}/nll-against-model.d_model, nll-against-model.d_model, nll-against-model.d_model.csv\n"
    )


def test_folders(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for the runs in it. Those of each set are drawn for themselves, and fronts once."""
    shown: dict[str, list[str]] = {}

    def save(figure: Figure, path: Path) -> list[Path]:
        shown[str(path.relative_to(out))] = [text.get_text() for axis in figure.axes for text in axis.texts]
        return [path, path]

    monkeypatch.setattr("cats.nmt.scoring.plots.style.save_figure", save)
    runs, out = tmp_path / "runs", tmp_path / "out"
    for name, seed in (("ted/cats", 1), ("ted/cats", 2), ("ted/T=1", 1), ("wmt/cats", 1)):
        method = "method.name=static" if "T=1" in name else "method.name=cats"
        made_run(runs / f"{name}-seed{seed}", method, seed=seed)
    made_run(runs / "noisy" / "cats-seed1", steps=[])
    assert main(["plot", str(runs), "--out", str(out), "--pictures", "loss"]) == 0
    assert {name: {*texts} for name, texts in shown.items()} == {"ted/loss": {"cats", "T=1"}, "wmt/loss": {"cats"}}
    missing = f"cats: {runs / 'noisy' / 'cats-seed1'} has no metrics yet: there is nothing to draw\n"
    assert capfd.readouterr().err == missing
    (runs / "front.json").write_text(json.dumps(made_fronts().to_json()), encoding="utf-8")
    shown.clear()
    assert main(["plot", str(runs), "--out", str(out), "--pictures", "front"]) == 0
    assert [*shown] == ["front"] and {"static", "restart"} <= {*shown["front"]}


def test_folders_that_have_only_fronts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """Two folders of one name have a picture each."""
    monkeypatch.setattr("cats.nmt.scoring.plots.style.save_figure", lambda figure, path: [path, path])
    one, two, out = tmp_path / "a" / "pareto", tmp_path / "b" / "pareto", tmp_path / "out"
    for folder in (one, two):
        folder.mkdir(parents=True)
        (folder / "front.json").write_text(json.dumps(made_fronts().to_json()), encoding="utf-8")
    assert main(["plot", str(one), "--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == (f"{out}/front, front\n", f"cats: {one} has fronts, but no runs\n")
    assert main(["plot", str(one), str(two), str(one / ".." / "pareto"), "--out", str(out)]) == 0
    names = [Path(line.partition(",")[0]).name for line in capfd.readouterr().out.splitlines()]
    assert names == ["front-a-pareto", "front-b-pareto"]
    assert refused("plot", one, "--pictures", "loss") == f"{one} has fronts, but no runs"


def test_what_is_no_run_stops_nothing_unless_it_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr("cats.nmt.scoring.plots.style.save_figure", lambda figure, path: [path, path])
    made_run(tmp_path / "runs" / "cats-seed1")
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "config.toml").write_text("[build]\nx = 1\n", encoding="utf-8")
    assert main(["plot", str(tmp_path / "runs"), "--pictures", "loss", "--out", str(tmp_path / "out")]) == 0
    (said,) = capfd.readouterr().err.splitlines()
    assert f"{other / 'config.toml'}" in said and said.endswith("; left out")
    assert f"cats: {refused('plot', other)}; left out" == said


@pytest.mark.parametrize(("name", "shown"), [(b"a$x_{$-seed1", "a$x_{$"), (b"\xff-seed1", "?")])
@pytest.mark.skipif("sys.platform != 'linux'")  # elsewhere, names of files are text
def test_names_that_are_no_text_or_look_like_formulas(name: bytes, shown: str, tmp_path: Path) -> None:
    run, out = made_run(tmp_path / os.fsdecode(name)), tmp_path / "out"
    assert main(["plot", str(run), "--out", str(out), "--pictures", "loss", "examples"]) == 0
    assert f">{shown}<" in (out / "loss.svg").read_text(encoding="utf-8")


def test_what_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    run = str(made_run(tmp_path / "run", steps=[10]))
    assert "--pictures: unknown picture los (did you mean loss?)" in refused("plot", run, "--pictures", "los")
    assert "--against: unknown setting d_model" in refused("plot", run, "--against", "d_model")
    assert "train.validate_bleu" in refused("plot", run, "--pictures", "bleu", "--out", str(tmp_path / "out"))
    assert "no run has a validation yet" in refused("plot", run, "--against", "model.d_model")
    assert "absent: no such folder" in refused("plot", str(tmp_path / "absent"))
    assert "none of the folders has the results of cats pareto" in refused("plot", run, "--pictures", "front")
    assert not (tmp_path / "out").exists()
