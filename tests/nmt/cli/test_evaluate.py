"""`cats evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.evaluate import score
from cats.nmt.cli.main import main


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
