"""Equal weights of any weighting give the gradient of the methods without weights, or the mean of the tasks' means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import apply_overrides
from cats.nmt.methods.catalogue import NUMBERS, Method
from cats.nmt.training.losses import add_gradients
from cats.nmt.training.trainer import Trainer
from cats.weighting import Weighting
from tests.nmt.common import settings


class Known(Weighting):
    """Weights known before the gradients."""

    losses_only = True

    def __init__(self, total: bool) -> None:
        self.total = total

    def start(self, tasks: int) -> None:
        self.tasks = tasks

    def equal(self, count: int) -> Tensor:
        return torch.full((count,), 1.0 if self.total else 1.0 / count, dtype=torch.float64)

    def weights(self) -> Tensor:
        return self.equal(self.tasks)

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Any) -> None:
        self.losses = losses.tolist()


class OfGram(Known):
    """Weights that follow from the Gram matrix."""

    losses_only = False
    needs_gram = True

    def weights_from_gram(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.losses = losses.tolist()
        return self.equal(len(gram))


def one_update(corpus: Path, folder: Path, *more: str) -> Trainer:
    """A trainer whose parameters have the gradients of a batch of both tasks."""
    config = apply_overrides(settings(corpus, "model.dropout=0", *more), ["sampling.batch_tokens=60"])
    trainer = Trainer(config, folder, resume=False, quiet=True)
    trainer.begin_update()
    step = next(step for step in range(2, 50) if set(trainer.batches.take(step).indices) == {"xa", "xb"})
    batch = trainer.batches.take(step)
    add_gradients(trainer.optimizer, trainer.losses_of(batch, trainer.optimizer), trainer.scaler)
    return trainer


def gradient(trainer: Trainer) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("total", [False, True], ids=["mean", "sum"])
@pytest.mark.parametrize("kind", [Known, OfGram], ids=["known", "gram"])
@pytest.mark.parametrize("prior", ["tokens", "uniform", "own"])
def test_equal_weights_are_the_plain_mean(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, total: bool, prior: str
) -> None:
    method = Method("equal", NUMBERS, "", "", made_by=f"{__name__}.Equal", relative=prior != "own", sums=total)
    weights, told = ("uniform", "tokens") if prior == "own" else (prior, prior)
    expected = gradient(one_update(corpus, tmp_path / "static", "method.name=static", f"method.weights={weights}"))
    monkeypatch.setitem(globals(), "Equal", lambda: kind(total))
    for module in ("cats.nmt.training.optimizer", "cats.nmt.methods.options"):
        monkeypatch.setattr(f"{module}.find", lambda name: method)
    trainer = one_update(corpus, tmp_path / "equal", "method.name=static", f"method.prior={told}")
    # One forward pass for all tasks, or one for each: the sums are in another order.
    assert torch.allclose(gradient(trainer), expected, rtol=1e-4, atol=1e-6)
    trainer.optimizer.step()
    losses = trainer.loss_log.totals()
    assert trainer.optimizer.weighting.losses == pytest.approx(  # type: ignore[attr-defined]
        [nll / count for nll, count, _ in losses.values()], rel=0.2
    )  # label smoothing makes a difference
