"""`cats compare`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.errors import Stopped
from cats.nmt.files import locked
from cats.nmt.scoring.grid import execute
from cats.nmt.scoring.grid.runs import Run
from tests.nmt.scoring.comparisons import finished_runs, write_repeating_corpus


def comparison(folder: Path) -> list[str]:
    """The command for the runs of `finished_runs` in folder/out, on the corpus in folder/toy."""
    methods = ["--methods", "T=1", "T=5", "cats", "--controls", "none", "--seeds", "1", "2"]
    return ["compare", "--data", str(folder / "toy"), "--out", str(folder / "out"), *methods]


def test_the_finished_comparison_is_written_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_runs(write_repeating_corpus(tmp_path / "toy"), tmp_path / "out")

    def never(run: Run) -> Any:
        raise AssertionError(f"{run.path} is finished")

    monkeypatch.setattr(execute, "start", never)
    assert main(comparison(tmp_path)) == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| T=1 |"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        *["1.000 ± 0.000"] * 3,
        *["50.0 ± 0.0", "0.0 ± 0.0", "100.0 ± 0.0"],
        *["10.0 ± 0.0"] * 3,
    ]
    summary = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert list(summary) == ["seeds", "settings", "sets", "regret", "regret_of_all"] and summary["seeds"] == [1, 2]
    assert list(summary["sets"]["toy"]) == [
        *("pairs", "groups", "lookup", "lookup_languages", "methods", "baseline", "not_run", "other_validation"),
        "named_baseline",
    ]
    assert list(summary["sets"]["toy"]["methods"]["cats"]) == [
        *("groups", "languages", "chrf_interval", "seeds", "seconds", "peak_memory", "untrained"),
        *(
            "cpu_seconds",
            "missing",
            "validation",
            "tokens",
            "examples",
            "trials",
            "chosen",
            "differences",
            "bleu_differences",
        ),
    ]
    assert list(summary["regret"]["cats"]) == [*("worst", "interval", "where", "cells", "above", "above_interval")]
    assert summary["sets"]["toy"]["lookup"]["lores"]["chrf"] == 0.0
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_named_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_runs(write_repeating_corpus(tmp_path / "toy"), tmp_path / "out")
    assert main([*comparison(tmp_path), "--baseline", "cats"]) == 0
    assert "and the difference to cats.\n" in capsys.readouterr().out
    assert main([*comparison(tmp_path), "--baseline", "cat"]) == 2
    assert (
        capsys.readouterr().err == "cats: --baseline: unknown method cat (did you mean cats?); known: T=1, T=5, cats\n"
    )


def test_text_without_test_lines_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_repeating_corpus(tmp_path / "toy")
    for file in (tmp_path / "toy").glob("test.*"):
        file.unlink()
    assert main(comparison(tmp_path)) == 2
    assert "toy: no task has test lines, so nothing could be compared" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_after_an_interruption_the_tables_are_written_and_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = finished_runs(write_repeating_corpus(tmp_path / "toy"), tmp_path / "out")
    for run in runs:
        if run.method == "cats":
            shutil.rmtree(run.path)

    def interrupted(*_: object) -> dict[Path, str]:
        raise Stopped

    monkeypatch.setattr(execute, "execute", interrupted)
    assert main(comparison(tmp_path)) == 130
    assert capsys.readouterr() == ("", "")
    assert "| cats | not finished |" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_after_a_failure_there_are_tables_and_the_exit_status_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = finished_runs(write_repeating_corpus(tmp_path / "toy"), tmp_path / "out")
    shutil.rmtree(runs[0].path)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'cats: it is broken' >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert main(comparison(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert "| T=1 | 1 of 2 |" in out and "| T=5 | 2 of 2 |" in out
    assert err.splitlines()[-1] == f"cats: 1 of 6 runs failed; the first: {runs[0].path}: it is broken"
    with locked(tmp_path / "out", lambda: None):  # another command trains runs there
        assert main(comparison(tmp_path)) == 2
    assert "out: another command is training runs there; wait" in capsys.readouterr().err
    runs[0].path.mkdir()  # another process may be about to train it
    assert main([*comparison(tmp_path), "--only-finished"]) == 0
    assert capsys.readouterr().out == out and runs[0].path.exists()
