"""`python -m bench.scaling`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import distributed as dist

from bench import show
from bench.common.measure import summary
from bench.common.results import FOLDER
from bench.scaling import __main__ as command
from bench.scaling import measure
from bench.scaling.measure import Settings
from bench.scaling.records import AllReduce, MeasuredStep, Moved, Pass, ScalingResults

TINY = Settings(processes=(1, 2), tasks=2, sentences=1, width=16, layers=1, vocabulary=50, rounds=1, sizes=(1024,))


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "Settings", lambda: TINY)
    monkeypatch.setattr(measure, "MEMORY_BYTES", 1 << 12)
    assert command.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    [path] = tmp_path.glob("*-scaling.json")
    found = json.loads(path.read_text())
    steps = [(s["processes"], s["method"]) for s in found["steps"] if not s["sharded"]]
    assert {m for n, m in steps if n == 1} == {m for n, m in steps if n == 2} >= {"plain", "inner", "per_task"}
    assert {(s["processes"], s["method"]) for s in found["steps"] if s["sharded"]} == {(2, "plain"), (2, "per_task")}
    assert {a["processes"] for a in found["all_reduces"]} == {2} and {p["processes"] for p in found["passes"]} == {1, 2}
    assert show.main([str(path)]) == 0
    assert capsys.readouterr().out == printed


def test_the_constants_explain_what_they_come_from() -> None:
    """Times that follow the model exactly give its constants back."""

    def passes(processes: int) -> list[Pass]:
        return [Pass(processes, n, summary([0.5 + 6e6 * n / 1e9])) for n in (50, 100)]

    def all_reduce(size: int) -> AllReduce:
        return AllReduce(4, size, summary([6 * (1e-3 + size / 4 / 1e6)]))

    results = ScalingResults(
        parameters=1_000_000,
        layers=2,
        tokens=100,
        tasks=10,
        threads=1,
        cores=4,
        passes=[*passes(1), *passes(4)],
        memory=[Moved(n, 10**9, summary([1.0])) for n in (1, 4)],
        all_reduces=[all_reduce(size) for size in (1000, 10**6, 10**7)],
        steps=[MeasuredStep(n, "plain", False, summary([1.0])) for n in (1, 4)],
    )
    on = results.hardware(4)
    assert (
        on.operations == pytest.approx(1e9) and on.call == pytest.approx(0.5) and on.memory_rate == pytest.approx(1e9)
    )
    assert on.near.latency == pytest.approx(1e-3) and on.near.bandwidth == pytest.approx(1e6)
    assert results.processes == [1, 4] and results.link(1).half_ring(1e6, 1) == 0


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"bench: {tmp_path / 'none'} is not a folder\n"


def test_the_document_has_the_predictions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--predict"]) == 0
    tables = capsys.readouterr().out.split("\n\n")
    text = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert len(tables) == 4 and all(table.strip() in text for table in tables)


def test_the_document_has_the_committed_measurement(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `python -m bench.show` prints of the newest result, without the table of single all-reduces."""
    newest = max(FOLDER.glob("*-scaling.json"), key=lambda path: json.loads(path.read_text())["date"])
    assert show.main([str(newest)]) == 0
    parts = [part for part in capsys.readouterr().out.strip().split("\n\n") if not part.startswith("| all-reduce")]
    text = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert len(parts) == 7 and [part for part in parts if part not in text] == []
