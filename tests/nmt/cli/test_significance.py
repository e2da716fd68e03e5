"""`cats significance`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.scoring.significance import compare
from tests.nmt.scoring.samples import random_lines, worse, write_scored_run


def test_significance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = random_lines(80, 9)
    good, bad = worse(references, 0.1, 10), worse(references, 0.5, 11)
    a = write_scored_run(tmp_path / "a", {"az": bad, "be": good}, references)
    b = write_scored_run(tmp_path / "b", {"az": good, "be": good}, references)
    assert main(["significance", str(a), str(b), "--out", str(tmp_path / "found.json")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"A = {a}\nB = {b}\n") and "| az   | BLEU   |" in out and err == ""
    assert json.loads((tmp_path / "found.json").read_text())["tests"] == [
        {
            "name": row.name,
            "metric": row.metric,
            **dataclasses.asdict(row.result),
            "interval": list(row.result.interval),
        }
        for row in compare(a, b)
    ]


def test_tasks_of_one_run_only_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = random_lines(40, 9)
    a = write_scored_run(tmp_path / "a", {"az": references, "be": references}, references)
    b = write_scored_run(tmp_path / "b", {"az": references}, references)
    assert main(["significance", str(a), str(b)]) == 0
    assert capsys.readouterr().err == "cats: left out, because only one run has them: be\n"


def test_the_output_is_checked_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    references = random_lines(4, 9)
    a = write_scored_run(tmp_path / "a", {"az": references}, references)
    monkeypatch.setattr("cats.nmt.scoring.significance.compare", lambda *_: pytest.fail("computed"))
    assert refused("significance", a, a, "--out", ".") == ". is a folder; give the name of a file"


def test_a_run_that_is_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = random_lines(4, 9)
    a = write_scored_run(tmp_path / "a", {"az": references}, references)
    b = write_scored_run(tmp_path / "b", {"az": [""] * 4}, references)
    assert main(["significance", str(a), str(b), "--out", str(tmp_path / "found.json")]) == 0
    said = "B is not trained: all its translations of az are empty."
    assert capsys.readouterr().out.endswith(f"\n\n{said}\n")
    assert json.loads((tmp_path / "found.json").read_text())["warnings"] == [said]


@pytest.mark.skipif(os.name != "posix", reason="devices as POSIX has them")
def test_significance_to_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    references = random_lines(4, 9)
    a = write_scored_run(tmp_path / "a", {"az": references}, references)
    assert main(["significance", str(a), str(a), "--out", "/dev/stdout"]) == 0
    found, _, table = capfd.readouterr().out.partition("\nA = ")
    assert json.loads(found)["first"] == str(a) and "| az " in table
