"""Training on a GPU: the losses of the CPU, every precision, every engine, and torchrun with NCCL."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.scoring.evaluate import evaluate
from cats.nmt.training.landscape import analyse
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import train
from tests.nmt.common import metrics, settings, write_short_corpus
from tests.processes import run_command

pytestmark = pytest.mark.gpu

EXACT = ["model.dropout=0", "train.steps=20", "train.validate_every=10", "train.log_every=5"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("gpu") / "toy")


def losses(run: Path) -> list[float]:
    """The training and validation losses of a run, in order."""
    found = []
    for line in metrics(run):
        for name in ("losses", "valid"):
            if isinstance(line.get(name), dict):
                found += [x for x in line[name].values() if isinstance(x, float)]
    return found


@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        ([], 2e-3),
        (["method.engine=per_task"], 2e-3),
        (["method.engine=two_pass"], 2e-3),
        (["method.name=gradvac"], 2e-3),
        (["method.name=static", "method.weights=tokens"], 2e-3),
        (["train.precision=bf16"], 3e-2),
        (["train.precision=fp16"], 3e-2),
        (["model.clsr=0.25"], 2e-2),
        (["train.checkpoint_activations=true", "train.accumulate=2"], 2e-3),
    ],
    ids=lambda more: "-".join(more) if isinstance(more, list) else None,
)
def test_losses_are_those_of_the_cpu(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], tolerance: float
) -> None:
    """20 updates in; the tolerance is that of the precision, for sums of a handful of tokens."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        train(settings(corpus, *EXACT, *more, "train.precision=fp32"), tmp_path / "cpu", quiet=True)
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    train(settings(corpus, *EXACT, *more), tmp_path / "gpu", quiet=True)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] > before
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    assert len(expected) >= 8 and found == pytest.approx(expected, rel=tolerance)


def test_a_run_is_scored_translated_and_measured(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["train.validate_bleu=1", "train.best_metric=chrf", "train.ema=0.9", "train.analyse_every=10"]
    train(settings(corpus, *EXACT, *more), run, quiet=True)
    scores = evaluate(run, quiet=True)
    assert scores.model.tasks.keys() == {"xa", "xb"}
    assert next(RunDirectory(run).load_model().model.parameters()) is not None
    assert all(math.isfinite(x) for record in analyse(run, quiet=True) for x in record.eigenvalues.values())


def test_a_stopped_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    """Not bit for bit: some of torch's kernels add in any order."""
    train(settings(corpus, *EXACT), tmp_path / "whole", quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        from cats.nmt.training.trainer import Trainer

        update = Trainer.update
        patch.setattr(Trainer, "update", lambda each: update(each) if each.step < 13 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(settings(corpus, *EXACT, "train.save_every=7"), tmp_path / "parts", quiet=True)
    train(settings(corpus, *EXACT, "train.save_every=7"), tmp_path / "parts", resume=True, quiet=True)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-3)


@pytest.mark.parametrize("sharding", ["replicas", "fsdp", "hybrid"])
def test_torchrun_with_nccl(corpus: Path, tmp_path: Path, sharding: str) -> None:
    """One process for each GPU of this machine."""
    count = torch.cuda.device_count()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    chosen = settings(corpus, *EXACT)
    given = [f"--set={text}" for text in (*EXACT, f"train.distributed={sharding}")]
    shape = ["d_model=32", "heads=2", "ffn=64", "encoder_layers=1", "decoder_layers=1"]
    given += [f"--set=model.{text}" for text in shape]
    given += [f"--set=sampling.batch_tokens={chosen.sampling.batch_tokens}", "--set=tokenizer.vocab_size=60"]
    words = [*command, "-m", "cats", "train", "--data", str(corpus), "--out", str(tmp_path / "run"), *given]
    done = run_command(words, 300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(math.isfinite(x) for x in losses(tmp_path / "run")) and losses(tmp_path / "run")
