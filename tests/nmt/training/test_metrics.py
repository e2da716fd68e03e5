"""The lines of metrics.jsonl are valid JSON and are cut back on a resume; TensorBoard gets the same numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cats.nmt.errors import UserError
from cats.nmt.training.metrics import Metrics, divergence, read_metrics


def started(run: Path, keep_until: int) -> Metrics:
    return Metrics(run / "metrics.jsonl", run / "tensorboard", keep_until)


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    metrics = started(tmp_path, 0)
    metrics.write({"step": 10, "losses": {"az": float("nan"), "be": 1.5}, "dots": [float("inf")], "best": True})
    metrics.sync()
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == '{"step": 10, "losses": {"az": null, "be": 1.5}, "dots": [null], "best": true}\n'


def test_lines_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    metrics = started(tmp_path, 0)
    for step in (10, 20, 30):
        metrics.write({"step": step, "loss": 0.1 * step})
    with metrics.path.open("a") as file:
        file.write('{"step": 40, "lo')
    before = metrics.path.read_text().splitlines()
    started(tmp_path, 20)
    assert metrics.path.read_text().splitlines() == before[:2]


def test_metrics_line_that_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 2')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 10}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"st\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        "[" * 100_000,
        '{"step": true}',
        '{"step": -1}',
        '{"step": 1e3}',
        '{"step": 1' + "0" * 30 + "}",
        '{"step": 1, "losses": 4}',
        '{"step": 1, "losses": {"az": "x"}}',
        '{"step": 1, "losses": {"az": 1e999}}',
        '{"step": 1, "alpha": [1]}',
        '{"step": 1, "alpha": {"az": true}}',
        '{"step": 1, "tokens": {"az": 3}, "seconds": null}',
        '{"step": 1, "tokens": {"az": 3}}',
        '{"step": 1, "tokens": {"az": null}, "seconds": 1}',
        '{"step": 1, "examples": 3}',
        '{"step": 1, "examples": {"az": "x"}}',
        '{"step": 1, "valid": 3}',
        '{"step": 1, "valid": {"nll": {"az": {}}}}',
        '{"step": 1, "scores": {"bleu": 3}}',
        '{"step": 1, "diverged": 3}',
        '{"step": 1, "probabilities": {"az": 0.5}}',
        '{"step": 1, "probabilities": {"az": null}, "from_update": 3}',
    ],
    ids=lambda line: line[:40],
)
def test_a_line_with_wrong_types(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 10}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged; remove the line$"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    metrics = started(tmp_path, 0)
    metrics.path = Path("/dev/full")
    with pytest.raises(UserError, match=r"^/dev/full: the disk is full"):
        metrics.write({"step": 10})


class Board:
    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.flushed = folder, purge_step, list[Any](), 0

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.flushed = -1


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    metrics = started(tmp_path, 20)
    metrics.write({"step": 30, "lr": 0.5, "dots": None, "alpha": {"az": 0.25}, "valid": {"nll": {"az": 2.0}, "all": 2}})
    metrics.sync()
    board: Any = metrics.boards[0].writer  # type: ignore[attr-defined]
    assert (board.folder, board.purge_step, board.flushed) == (str(tmp_path / "tensorboard"), 21, 1)
    assert board.scalars == [("lr", 0.5, 30), ("alpha/az", 0.25, 30), ("valid/nll/az", 2.0, 30), ("valid/all", 2, 30)]
    metrics.close()
    assert board.flushed == -1


def test_without_tensorboard_only_the_lines_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    started(tmp_path, 0).write({"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1}


def test_how_a_run_ended() -> None:
    valid = {"step": 20, "valid": {"nll": {"az": 1.0, "be": None}, "all": None}}
    assert divergence([]) == divergence([{"step": 30, "losses": {"az": None}}]) == ""
    assert divergence([valid, {"step": 30}]) == "training diverged at update 20 (the validation NLL is not finite)"
    assert divergence([valid, {"step": 30, "valid": {"nll": {"az": 1.0}, "all": 1.0}}]) == ""
    assert divergence([{"step": 20, "valid": {"nll": {}, "all": None}}]) == ""  # no validation pairs
    assert divergence([valid, {"step": 25, "diverged": "training diverged at update 23 (why)"}]).endswith("23 (why)")
