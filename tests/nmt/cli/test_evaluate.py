"""`cats evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main


def test_evaluate_again_gives_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    (run / "scores.json").unlink(), (run / "report.md").unlink()
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "scores.json").read_text(encoding="utf-8")) == before
    assert (run / "report.md").exists() and "| **All**" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--split", "valid"]) == 0
    assert (run / "scores.valid.json").exists()
