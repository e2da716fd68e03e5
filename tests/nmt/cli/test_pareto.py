"""`cats pareto`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.scoring.grid import execute
from cats.nmt.scoring.grid.runs import Run
from tests.nmt.scoring.comparisons import write_repeating_corpus
from tests.nmt.scoring.pareto.made import on_a_front


def test_the_finished_fronts_are_written_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    on_a_front(write_repeating_corpus(tmp_path / "toy"), out)

    def never(run: Run) -> Any:
        raise AssertionError(f"{run.path} is finished")

    monkeypatch.setattr(execute, "start", never)
    words = ["pareto", "--data", str(tmp_path / "toy"), "--out", str(out), "--between", "xb", "xa", "--seeds", "1", "2"]
    words += ["--ratios", "0.2", "0.5", "0.8", "--methods", "restart", "pretrain", "T=3"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    text = (out / "front.md").read_text(encoding="utf-8")
    assert text in printed
    assert text.startswith("## toy: xb and xa, validation NLL\n")
    content = json.loads((out / "front.json").read_text(encoding="utf-8"))
    assert list(content) == ["metric", "seeds", "settings", "fronts"]
    assert content["fronts"][0]["methods"]["pretrain-finetune"]["beyond"] is True
    assert (out / "front.csv").read_text(encoding="utf-8").startswith("set,low_side,high_side,method,ratio,seed,")
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG") and (out / "front.svg").exists()


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pareto", "--metric", "ter", "--out", str(tmp_path)]) == 2
    assert main(["pareto", "--between", "az", "--out", str(tmp_path)]) == 2
    assert main(["pareto", "--ratios", "2", "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("cats: ") for line in lines)
    assert "--ratios 2: must be above 0 and below 1" in lines[2]
