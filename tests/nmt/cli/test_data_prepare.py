"""`cats data prepare`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main


def test_printed_commands_can_be_pasted(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, more = tmp_path / "with a space", ["--set", 'data.tasks=["az", "be"]', "--set", "tokenizer.vocab_size=70"]
    assert main(["data", "prepare", str(trained / "toy"), "--out", str(out), "--processes", "1", *more]) == 0
    line = capfd.readouterr().out.splitlines()[-1].removeprefix("Train on it: ")
    assert shlex.split(line) == ["cats", "train", "--data", str(out), *more]


def test_prepared_with_the_settings_of_a_file(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command that it prints in its last line works."""
    (tmp_path / "mine.toml").write_text("[tokenizer]\nvocab_size = 70\nper_language = true\n")
    given = ["--preset", "tiny", "--config", str(tmp_path / "mine.toml"), "--set", "model.max_length=50"]
    out = tmp_path / "prepared"
    assert main(["data", "prepare", str(trained / "toy"), "--out", str(out), "--processes", "1", *given]) == 0
    line = capfd.readouterr().out.splitlines()[-1]
    assert line == f"Train on it: cats train --data {out} {' '.join(given)}"
    small = ["--quiet", "--steps", "2", "--set", "model.d_model=32", "--out", str(tmp_path / "run")]
    assert main([*line.partition("cats ")[2].split(), *small]) == 0
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["steps"] == 2
