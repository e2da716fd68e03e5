"""Baselines in processes of their own: why one is missing, and that all of them end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bench.common.measure import Unavailable
from bench.trainer import baseline_process
from bench.trainer.baselines import Job
from bench.trainer.comparison import JOEY

JOB = Job(
    vocab_size=10,
    first_piece=4,
    pad_id=0,
    bos_id=2,
    eos_id=3,
    d_model=8,
    heads=2,
    ffn=8,
    encoder_layers=1,
    decoder_layers=1,
    dropout=0.0,
    smoothing=0.0,
    lr=1e-3,
    betas=(0.9, 0.98),
    clip=1.0,
    batch_tokens=100,
    threads=1,
    beam=1,
    length=4,
    text=None,
)


def test_missing_baselines_have_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"batches": [], "sources": [], "weights": {}}, tmp_path / "empty.pt")
    python = Path(sys.executable)

    def start(python: Path, baseline: str) -> baseline_process.Process:
        return baseline_process.Process(python, baseline, JOB, tmp_path / "empty.pt", tmp_path / "log")

    with pytest.raises(Unavailable, match=r"no .*/nowhere/bin/python; bench/README.md says"):
        start(tmp_path / "nowhere/bin/python", JOEY)
    with pytest.raises(Unavailable, match="KeyError: 'nobody'"):
        start(python, "nobody")
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(baseline_process, "WORKER", worker)
    worker.write_text("import no_such_library")
    with pytest.raises(Unavailable, match="it ended: ModuleNotFoundError: No module named 'no_such_library'"):
        start(python, JOEY)
    worker.write_text("import time; time.sleep(60)")  # it is killed after the time below
    monkeypatch.setattr(baseline_process, "PATIENCE", 0.3)
    with pytest.raises(Unavailable, match="no answer for"):
        start(python, JOEY)


def test_baselines_end_with_the_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import sys\nfor line in sys.stdin:\n    print('{}', flush=True)")
    monkeypatch.setattr(baseline_process, "WORKER", worker)
    with pytest.raises(ZeroDivisionError), baseline_process.processes() as start:
        process = start(Path(sys.executable), JOEY, JOB, tmp_path / "none.pt", tmp_path / "log")
        assert process.call("anything") == {}
        raise ZeroDivisionError
    assert process.process.returncode is not None
