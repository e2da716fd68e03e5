"""`cats plot`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("matplotlib")

from cats.nmt.cli.main import main
from tests.nmt.scoring.plots.made import made_run
from tests.nmt.scoring.samples import png_size


def test_pictures_of_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    new, run, out = made_run(tmp_path / "new", steps=[]), made_run(tmp_path / "run"), tmp_path / "out"
    assert main(["plot", str(new), str(run), "--out", str(out), "--pictures", "loss"]) == 0
    printed = capfd.readouterr()
    assert printed.out == f"{out}/loss.png, loss.svg\n"
    assert printed.err == f"cats: {new} has no metrics yet; left out\n"
    assert sorted(path.name for path in out.iterdir()) == ["loss.png", "loss.svg"]
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
    assert [line.split()[3] for line in printed.err.splitlines()] == [
        *("bleu:", "chrf:", "forgetting:", "curvature:", "similarity:", "layers:")
    ]
    assert main(["plot", str(run), "--out", str(out), "--against", "model.d_model"]) == 0
    assert capfd.readouterr().out == f"{out}/nll-against-model.d_model, nll-against-model.d_model\n"


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
    assert "is not a run directory" in refused("plot", str(tmp_path))
    assert not (tmp_path / "out").exists()
