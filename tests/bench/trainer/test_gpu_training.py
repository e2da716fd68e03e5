"""Training on a GPU: tokens, rate and idle share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.trainer import gpu_training
from bench.trainer.cats_trainer import CatsTrainer

from .common import TINY


def test_idle_share() -> None:
    assert gpu_training.idle([(0, 4), (1, 2), (3, 5), (8, 10)]) == pytest.approx(0.3)
    assert gpu_training.idle([(5, 6), (0, 5)]) == 0


@pytest.mark.gpu
def test_a_measurement_on_the_gpu(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_training, "SAMPLES", 2)
    found = gpu_training.measured("tiny", CatsTrainer(TINY, corpus, tmp_path / "run").trainer)
    assert found.per_second.median > 0 and found.batch_tokens == 150
    # For each token, the forward pass multiplies every matrix parameter at least once, the backward pass twice.
    assert found.rate > 2 * found.parameters * found.per_second.median
    assert 0 < found.idle < 1


def test_tokens_of_updates(corpus: Path, tmp_path: Path) -> None:
    trainer = CatsTrainer(TINY, corpus, tmp_path / "run").trainer
    gpu_training.updates(trainer, 1)
    tokens, seconds = gpu_training.updates(trainer, 2)
    batches = [trainer.training.batch(trainer.sampler.batch(step)) for step in (1, 2)]
    assert tokens == sum(len(batch.target_cells) for batch in batches) and seconds > 0 and trainer.step == 3
