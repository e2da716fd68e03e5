"""`cats average`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

import torch

from cats.nmt.cli.main import main
from cats.nmt.scoring.evaluate import evaluate
from cats.nmt.training import checkpoint
from tests.nmt.cli.common import SET


def test_average_of_the_newest_models(
    trained: Path, tmp_path: Path, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    run, more = tmp_path / "run", ["--set", "train.steps=30", "--set", "train.keep=2"]
    assert main(["train", "--data", str(trained / "toy"), "--out", str(run), "--quiet", *SET, *more]) == 0
    folder = run / "checkpoints"
    assert main(["average", str(run)]) == 0
    assert capfd.readouterr().out == f"{folder / 'average.pt'}: the mean of step-20.pt, step-30.pt\n"
    one, other, mean = (checkpoint.load(folder / f"{n}.pt")["model"] for n in ("step-20", "step-30", "average"))
    for name, tensor in mean.items():
        expected = ((one[name].double() + other[name].double()) / 2).to(tensor.dtype)
        assert tensor.dtype == one[name].dtype and torch.equal(tensor, expected), name

    assert main(["evaluate", str(run), "--checkpoint", "average"]) == 0
    names = ("average", "step-30", "last")
    scores = {name: evaluate(run, checkpoint=name, quiet=True) for name in names}
    assert [scores[name].run.checkpoint for name in names] == list(names)
    assert scores["step-30"].model.tasks == scores["last"].model.tasks != scores["average"].model.tasks

    capfd.readouterr()
    assert main(["evaluate", str(run), "--checkpoint", "best", "last"]) == 0
    assert "| BLEU best | BLEU last |" in capfd.readouterr().out
    assert "| BLEU best | BLEU average | BLEU last |" in (run / "report.md").read_text(encoding="utf-8")

    assert main(["average", str(run), "--last", "1"]) == 0
    assert all(torch.equal(t, other[n]) for n, t in checkpoint.load(folder / "average.pt")["model"].items())
    files = [str(folder / "best.pt"), str(folder / "step-20.pt")]
    assert main(["average", str(run), "--checkpoints", *files]) == 0

    assert refused("average", run, "--last", "3") == f"--last 3: {run} has kept 2 models"
    assert "leave one of them out" in refused("average", run, "--last", "1", "--checkpoints", files[0])
    strange = trained / "run" / "checkpoints" / "best.pt"
    state = checkpoint.load(strange)
    checkpoint.save(tmp_path / "other.pt", {**state, "model": {n: t[:1] for n, t in state["model"].items()}})
    message = refused("average", run, "--checkpoints", files[0], tmp_path / "other.pt")
    assert "belongs to another model or corpus" in message
    assert "cannot read the checkpoint" in refused("average", run, "--checkpoints", tmp_path / "absent.pt")
    checkpoint.save(tmp_path / "empty.pt", {})
    assert "has no model" in refused("average", run, "--checkpoints", tmp_path / "empty.pt")
    assert "train.keep=5" in refused("average", trained / "run")
    assert "absent: no such folder" in refused("average", tmp_path / "absent")
    message = refused("translate", run, "--to", "az", "--checkpoint", "lst")
    there = "average, best, last, previous, step-20, step-30"
    assert message == f"{run} has no checkpoint 'lst' (did you mean last?); there are {there}"


def test_average_of_runs_on_raw_and_prepared_text(trained: Path, tmp_path: Path) -> None:
    """One text has one digest, wherever it is."""
    prepared = tmp_path / "prepared"
    assert main(["data", "prepare", str(trained / "toy"), "--out", str(prepared), "--processes", "1", *SET]) == 0
    other = tmp_path / "run"
    few = ["--set", "train.steps=1"]
    assert main(["train", "--data", str(prepared), "--out", str(other), "--quiet", *SET, *few]) == 0
    files = [str(run / "checkpoints" / "best.pt") for run in (other, trained / "run")]
    assert main(["average", str(other), "--checkpoints", *files]) == 0
    assert main(["evaluate", str(other), "--checkpoint", "average", "--data", str(trained / "toy")]) == 0
