"""`cats analyse`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

import torch

from cats.nmt.cli.main import main
from cats.nmt.training.landscape import Landscape


def test_tables(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", str(run)]) == 0
    out, err = capfd.readouterr()
    assert err.startswith("best: measuring 2 tasks (1 of ")
    lines = [json.loads(line) for line in (run / "landscape.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["step"] == 20 and lines[0]["tasks"] == ["az", "be"]
    for line in lines:
        top = sum(line["eigenvalues"].values()) / 2
        assert f"| 20      | {line['checkpoint']} " in out and f" {top:.3g} |" in out
    cosine = lines[-1]["kinds"]["D.EA"]["cosine"][0][1]
    row = next(line for line in out.splitlines() if line.startswith("| D.EA"))
    assert [cell.strip() for cell in row.split("|")[2:5]] == [f"{cosine:.3g}"] * 3
    assert out.endswith(f"\n{run}: landscape.jsonl\n")

    assert main(["analyse", str(run), "--checkpoint", "best", "--tasks", "be"]) == 0  # one task has no pairs
    assert "| all    |    n/a |    n/a |     n/a |       n/a |" in capfd.readouterr().out


def test_refused(
    run: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = tmp_path / "absent"
    assert refused("analyse", absent) == f"{absent}: no such folder; give a run directory, as printed by cats train"
    message = refused("analyse", run, "--checkpoint", "bets")
    assert message.startswith(f"{run} has no checkpoint 'bets' (did you mean best?)")
    assert (
        refused("analyse", run, "--split", "tran") == "unknown split 'tran' (did you mean train?); give valid or train"
    )
    assert "the number of batches must be at least 1" in refused("analyse", run, "--batches", "0")
    assert "the number of batch tokens must be" in refused("analyse", run, "--batch-tokens", "-3")
    assert "the seed must be between 0" in refused("analyse", run, "--seed", "-1")
    assert main(["analyse", str(run), "--tasks", "az,bee"]) == 2
    assert capfd.readouterr().err.endswith("cats: unknown task bee (did you mean be?); known: az, be\n")

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Landscape, "measure", out_of_memory)
        assert main(["analyse", str(run)]) == 2
    assert capfd.readouterr().err.endswith(
        f"cats: {run}: the GPU has too little memory for this; lower --batch-tokens\n"
    )
    assert not (run / "landscape.jsonl").exists()
    (run / "model.safetensors").touch()
    assert "is an exported model, which does not say of which update" in refused("analyse", run)
