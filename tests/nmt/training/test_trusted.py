"""The method target-projection: which pairs are trusted, and what their gradients do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch
from torch import Tensor

from cats.nmt.config.toml import read_config
from cats.nmt.errors import UserError
from cats.nmt.training.losses import add_gradients
from cats.nmt.training.trainer import Trainer, train
from cats.nmt.training.training_data import load_training_data
from tests.nmt.common import assert_same_runs, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted

METHOD = "method.name=target-projection"
NOISY = ["train.lr=0.1", "sampling.batch_tokens=12"]  # so that some gradients conflict


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("trusted") / "toy")


def test_trusted_and_validation_pairs_are_those_of_the_corpus_and_disjoint(corpus: Path, tmp_path: Path) -> None:
    config = short(corpus, METHOD)
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    assert trainer.trusted is not None
    every = load_training_data(config, trainer.directory, trainer.device, started_with=None, quiet=True).validation
    for task in ("xa", "xb"):
        own = zip(*trainer.validation.rows(task), strict=True)
        trusted = zip(*trainer.trusted.dataset.rows(f"trusted/{task}"), strict=True)
        parts = [[(tuple(s), tuple(t)) for s, t in part] for part in (own, trusted)]
        assert [len(part) for part in parts] == [2, 8]
        assert sorted(parts[0] + parts[1]) == sorted(
            (tuple(s), tuple(t)) for s, t in zip(*every.rows(task), strict=True)
        )
    assert trainer.validation.starts == every.starts


def test_conflicts_with_the_trusted_gradients_are_removed(corpus: Path, tmp_path: Path) -> None:
    """Against the rule of the paper, computed from the gradients; the tasks count by their tokens."""
    trainer = Trainer(short(corpus, METHOD, "model.dropout=0", *NOISY), tmp_path / "run", resume=False, quiet=True)
    assert trainer.trusted is not None
    parameters = list(trainer.model.parameters())

    def gradient(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([g.flatten() for g in found]).double()

    conflicts = 0
    for _ in range(12):
        trainer.update()
        batch = trainer.batches.take(trainer.step)
        normalizers = trainer.losses.normalizers(batch.indices)
        trained = trainer.losses.separate(batch.parts[0], normalizers, None)
        trusted = trainer.trusted.of_update(trainer.step, batch.indices)
        assert list(trusted) == [f"trusted/{task}" for task in trained]
        total = sum(normalizers.values())
        expected = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        for task, loss in trained.items():
            g, o = gradient(loss()) * normalizers[task] / total, gradient(trusted[f"trusted/{task}"]())
            conflicts += bool(g @ o < 0)
            expected += g - min(0.0, float(g @ o / (o @ o))) * o
        add_gradients(trainer.optimizer, trainer.losses_of(batch, trainer.optimizer), trainer.scaler)
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)  # float32 gradients
        trainer.optimizer.zero_grad()
    assert conflicts  # or the test would show nothing


def test_it_is_resumed_exactly_and_with_parts(corpus: Path, tmp_path: Path) -> None:
    config = short(corpus, METHOD, "train.steps=30", "train.accumulate=2")
    train(config, tmp_path / "whole", quiet=True)
    with interrupted(16):
        train(config, tmp_path / "parts", quiet=True)
    train(read_config(tmp_path / "parts" / "config.toml"), tmp_path / "parts", resume=True, quiet=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    line = [line for line in metrics(tmp_path / "whole") if "losses" in line][-1]
    assert line["losses"].keys() == {"xa", "xb"} and {"xa", "trusted/xa"} < line["alpha"].keys()


@pytest.mark.parametrize("left", [0, 1])
def test_it_needs_validation_pairs(corpus: Path, tmp_path: Path, left: int) -> None:
    shutil.copytree(corpus, tmp_path / "toy")
    for path in (tmp_path / "toy").glob("valid.en-xb.*"):
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:left]), encoding="utf-8")
    said = "method.name = target-projection needs at least two validation pairs of each task that are no longer than "
    with pytest.raises(UserError, match=re.escape(said)):
        train(short(tmp_path / "toy", METHOD), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
