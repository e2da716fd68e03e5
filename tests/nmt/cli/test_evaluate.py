"""`cats evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.evaluate import check_out, score
from cats.nmt.cli.main import main
from cats.nmt.scoring.members import write_members
from cats.nmt.scoring.scores import read_scores
from cats.nmt.training import checkpoint


def test_evaluate_again_gives_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    (run / "scores.json").unlink(), (run / "report.md").unlink()
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "scores.json").read_text(encoding="utf-8")) == before
    assert (run / "report.md").exists() and "| **All**" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--split", "valid"]) == 0
    assert (run / "scores.valid.json").exists()


def test_the_report_is_written_if_nobody_reads_the_output(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.md").unlink()

    def closed(*_words: object, **_options: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with pytest.raises(BrokenPipeError):
        score(run, "test")
    assert (run / "report.md").exists()


def test_several_runs_are_scored_as_one_model(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run has other parameters, so that all likelihoods change; the files of the runs do not."""
    best = run / "checkpoints" / "best.pt"
    state = checkpoint.load(best)
    changed = {name: 1.5 * value for name, value in state["model"].items()}
    checkpoint.save(best, {**state, "model": changed})
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    out = tmp_path / "both"
    for _ in range(2):  # the folder of an ensemble may be written again
        assert main(["evaluate", str(trained / "run"), str(run), "--out", str(out)]) == 0
    assert f"Compare it: cats significance {trained / 'run'} {out}" in capsys.readouterr().out
    one, both = read_scores(trained / "run"), read_scores(out)
    assert both.run.method == "cats + cats" and both.run.seconds is None and one.run.steps == both.run.steps
    assert all(both.model.tasks[task].get("nll") != cell.get("nll") for task, cell in one.model.tasks.items())
    assert (out / "hyp" / "test.az.ref").read_bytes() == (run / "hyp" / "test.az.ref").read_bytes()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_where_the_scores_of_several_runs_go(tmp_path: Path, refused: Callable[..., str]) -> None:
    """What is refused is refused before any run is read."""
    run, other, third = (tmp_path / name for name in "abc")
    run.mkdir()
    (run / "scores.json").touch()
    assert "give a folder for its scores with --out" in refused("evaluate", run, other)
    assert "--out is for several runs" in refused("evaluate", run, "--out", tmp_path / "new")
    again = tmp_path / "b" / ".." / "a"
    assert refused("evaluate", run, other, again, "--out", tmp_path / "new").startswith(f"{again} is named twice")
    assert not (tmp_path / "new").exists()
    taken = f"{run} exists already, and has not the scores of these runs; choose another --out"
    assert refused("evaluate", run, other, "--out", run) == taken
    write_members(run, [run, other])
    check_out([run, other], run)
    assert refused("evaluate", run, third, "--out", run) == refused("evaluate", other, run, "--out", run) == taken
    (run / "members.json").write_text("{", encoding="utf-8")
    assert refused("evaluate", run, other, "--out", run) == taken
