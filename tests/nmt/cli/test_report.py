"""`cats report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.training import checkpoint
from tests.nmt.scoring.pareto.made import made_fronts


def test_the_page_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    page = run / "report.html"
    said = capsys.readouterr().out
    assert said == f"{page}: 1 run, {page.stat().st_size / 1024:,.0f} KiB\n"
    text = page.read_text(encoding="utf-8")
    assert "<h1>run</h1>" in text and "Translations" in text
    parameters = checkpoint.load(run / "checkpoints" / "best.pt")["model"].values()
    assert f"<dt>parameters</dt><dd>{sum(each.numel() for each in parameters):,}</dd>" in text
    assert f"cats report {run} --lines 6 --out {page}" in text


def test_several_runs_and_a_folder_of_them(trained: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert main(["report", str(run), str(trained / "run"), "--lines", "0", "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "<h1>2 runs</h1>" in text and "Translations" not in text
    assert main(["report", str(trained), "--out", str(out)]) == 0
    assert f"<h1>{trained.name}</h1>" in out.read_text(encoding="utf-8")


def test_fronts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "front.json").write_text(json.dumps(made_fronts(count=2).to_json()), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0
    page = tmp_path / "report.html"
    assert capsys.readouterr().out == f"{page}: 2 fronts, {page.stat().st_size / 1024:,.0f} KiB\n"
    assert "Trade-off fronts on ted." in page.read_text(encoding="utf-8")


def test_folders_of_one_name(tmp_path: Path) -> None:
    folders = [tmp_path / name / "pareto" for name in "ab"]
    for number, folder in enumerate(folders):
        fronts = made_fronts()
        fronts.fronts[0].methods["T=3"].points[0].diverged.append(number)
        folder.mkdir(parents=True)
        (folder / "front.json").write_text(json.dumps(fronts.to_json()), encoding="utf-8")
    page = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<h1>2 fronts</h1>" in text
    for number, name in enumerate(("a/pareto", "b/pareto")):
        assert f">Trade-off fronts {name}</h2>" in text
        assert f"<dt>{name}/ted/az-hires/T=3</dt><dd>seed {number}</dd>" in text


def test_refused(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """One line each, and an older page stays as it was."""
    page = run / "report.html"
    page.write_text("old", encoding="utf-8")
    assert refused("report", run, "--lines", "-1") == "--lines must be at least 0, not -1"
    assert "absent: no such folder" in refused("report", tmp_path / "absent")
    assert "is neither a run directory nor" in refused("report", run / "checkpoints")
    translations = run / "hyp" / "test.az.txt"
    translations.write_text("other\n", encoding="utf-8")
    assert "has changed since it was scored" in refused("report", run)
    assert "is a folder; give the name of a file" in refused("report", run, "--out", tmp_path)
    (run / "scores.json").unlink()
    assert f"make it with: cats evaluate {run}" in refused("report", run)
    assert page.read_text(encoding="utf-8") == "old" and not [p for p in run.iterdir() if p.suffix == ".tmp"]
