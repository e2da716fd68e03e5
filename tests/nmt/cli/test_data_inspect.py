"""`cats data inspect`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.data_inspect import entropy
from cats.nmt.cli.main import main


def test_data_inspect(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(trained / "toy")]) == 0
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:5] == ["task", "group", "train", "valid", "test"]
    assert [row[:5] for row in rows[2:4]] == [["be", "LoRes", "20", "8", "10"], ["az", "HiRes", "60", "8", "10"]]


def test_the_entropy_of_one_task_is_zero() -> None:
    assert f"{entropy([7]):.2f}" == "0.00"


def test_data_inspect_lengths_entropy_and_zero_shot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Line lengths, the entropy of 2 and 6 pairs (each twice) in nats, zero-shot directions, and left-out pairs."""
    for pair, lines in (("en-xa", 2), ("en-xb", 6)):
        for side in pair.split("-"):
            text = "".join(f"{'four' if side == 'en' else side * (1 + i)}\n" for i in range(lines)) + "\n"
            (tmp_path / f"train.{pair}.{side}").write_text(text)
    for side in "xa", "xb":
        (tmp_path / f"test.xa-xb.{side}").write_text("x\n")
    assert main(["data", "inspect", str(tmp_path), "--direction", "many-to-many"]) == 0
    lines_ = capsys.readouterr().out.splitlines()
    rows = {(cells := [c.strip() for c in line.strip("|").split("|")])[0]: cells[1:] for line in lines_}
    assert rows["xa"] == ["LoRes", "2", "0", "0", "3.0", "4"] and rows["xb"] == ["HiRes", "6", "0", "0", "7.0", "12"]
    assert rows["xa-xb"] == ["zero-shot", "", "", "1", "", ""]
    entropy = -2 * (2 / 16 * math.log(2 / 16) + 6 / 16 * math.log(6 / 16))
    assert f"16 training pairs; entropy of their distribution {entropy:.2f} nats, of a uniform one 1.39" in lines_
    assert "en-xa: 1 train pairs left out, a side is blank" in lines_
