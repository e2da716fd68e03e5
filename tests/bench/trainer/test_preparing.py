"""The command `python -m bench.trainer.preparing`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import show
from bench.trainer import preparing


def test_memory_of_preparing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparing, "BLOCK", 200)
    assert preparing.main(["--pairs", "300", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    (size,) = json.loads(file.read_text())["sizes"]
    assert size["pairs"] == 300 and 50 < size["peak_mib"] < 5000 and size["seconds"] > 0
    printed = capsys.readouterr().out
    assert f"| 300 | 0 | {size['seconds']:.0f} | {size['peak_mib']:.0f} |" in printed
    assert show.markdown(file) == printed
