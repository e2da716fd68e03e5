"""The command `python -m bench.engines`: checks, measurements, tables, files."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cats
from bench import show
from bench.engines import __main__ as command
from bench.engines import memory, run, workload
from bench.engines.contenders import ONE_PASS, SAMPLED, TORCHJD
from bench.engines.workload import Size

from .common import SMALL


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model, few rounds, and no processes for the memory."""

    def peaks(size: Size, tasks: int, names: Iterable[str], device: torch.device) -> dict[str, int | None]:
        return dict.fromkeys(names, 1000)

    monkeypatch.setattr(workload, "cpu", lambda: [replace(SMALL, thorough=True), SMALL])
    monkeypatch.setattr(memory, "peaks", peaks)
    monkeypatch.setattr(run, "ROUNDS", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # TorchJD under vmap
def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*-engines-quick.json")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert show.markdown(path) == printed
    found = json.loads(path.read_text())
    assert [(step["model"], step["tasks"]) for step in found["outer_steps"]] == [("tiny", 2), ("tiny", 8)]
    installed = importlib.util.find_spec("torchjd") is not None
    for step in found["outer_steps"]:
        assert [r["name"] for r in step["refused"] if installed or not r["name"].startswith("TorchJD")] == []
        assert len(step["contenders"]) == (11 if installed else 8)
        assert [t["inner_steps"] for t in step["training"]] == ([2, 5, 10] if step["tasks"] == 8 else [5])
        assert all(c["error"] < 1e-4 for c in step["contenders"] if c["name"] != SAMPLED)
        assert {t["engine"] for t in step["training"]} == {ONE_PASS}


@pytest.mark.usefixtures("small")
def test_a_wrong_result_gets_no_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = cats.CATS.statistics.fget
    assert right is not None

    def wrong(optimizer: Any) -> dict[str, Any]:
        seen = right(optimizer)
        off = 1.0 if seen.get("engine") == ONE_PASS else 0.0
        return seen | {"dots": {n: v + off for n, v in seen.get("dots", {}).items()}}

    monkeypatch.setattr(cats.CATS, "statistics", property(wrong))
    monkeypatch.setattr(run, "CONTENDERS", [c for c in run.CONTENDERS if c.kind != TORCHJD])
    assert command.main(["--quick", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert f"- {ONE_PASS} (tiny K=8): v is wrong by " in printed
    assert "- auto, m=5 (tiny K=2, tiny K=8): auto was not measured" in printed
    assert f"| {ONE_PASS} |" not in printed and "| two_pass, shared graph |" in printed


def test_contenders_without_a_target_are_measured_once() -> None:
    few, every = ({c.name for c in run.chosen(SMALL, tasks)} for tasks in (32, 8))
    assert few < every < {c.name for c in run.chosen(replace(SMALL, thorough=True), 32)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--gpu"], "not allowed with"),
        (["--gpu"], "needs a CUDA device"),
        (["--out", "no/such/folder"], "no/such/folder is not a folder"),
    ],
)
def test_wrong_arguments(words: list[str], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal(command.main, words)
