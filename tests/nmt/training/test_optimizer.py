"""Equal weights of any weighting give the gradient of the methods without weights, or the mean of the tasks' means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sentencepiece")

import cats
from cats.nmt.config.toml import apply_overrides
from cats.nmt.errors import UserError
from cats.nmt.methods.catalogue import NUMBERS, Method
from cats.nmt.training.losses import add_gradients
from cats.nmt.training.trainer import Trainer, train
from cats.weighting import Gramian, Weighting
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


def test_a_rule_that_an_update_has_too_few_tasks_for_is_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(gram: Tensor) -> Tensor:
        if len(gram) < 2:
            raise ValueError("Parameter `gram`\nneeds two rows.")
        return gram.new_ones(len(gram))

    method = Method("few", NUMBERS, "", "", made_by=f"{__name__}.Few", relative=True)
    monkeypatch.setitem(globals(), "Few", lambda: Gramian(rule))
    for module in ("cats.nmt.training.optimizer", "cats.nmt.methods.options"):
        monkeypatch.setattr(f"{module}.find", lambda name: method)
    config = settings(corpus, "method.name=static", "method.prior=tokens", "sampling.tasks_per_update=1")
    message = r"run: update \d+: method\.name = static: this step has 1 of the 2 tasks, and .* needs two rows\.; use an"
    with pytest.raises(UserError, match=message) as error:
        train(config, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)


def test_equal_token_weights_are_the_plain_mean_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    plain = gradient(one_update(corpus, tmp_path / "plain", "method.name=static"))
    equal = gradient(one_update(corpus, tmp_path / "equal", "method.name=static", "method.token_weights=[1,1]"))
    assert torch.equal(equal, plain)


def test_token_weights_are_alpha_relative_to_the_tokens_of_the_batch(corpus: Path, tmp_path: Path) -> None:
    """The control of CATS weights a batch with other shares as CATS does with the same factors."""
    trainer = one_update(corpus, tmp_path / "cats", "method.alpha_lr=0", "method.floor=0")
    trainer.optimizer.zero_grad()
    state = trainer.optimizer.weighting.state_dict()
    state["a"] = torch.tensor([0.4, -0.7], dtype=torch.float64)
    trainer.optimizer.weighting.load_state_dict(state)
    assert isinstance(trainer.optimizer, cats.CATS)
    prior, alpha = trainer.optimizer.prior, trainer.optimizer.alpha
    factors = [alpha[task] / prior[task] for task in ("xa", "xb")]
    weights = f"method.token_weights={factors}"
    static = one_update(corpus, tmp_path / "static", "method.name=static", weights)
    static.optimizer.zero_grad()
    shares = set()
    for step in range(2, 30):
        batch = trainer.batches.take(step)
        if len(batch.indices) < 2 or len(shares) == 3:
            continue
        for each in (trainer, static):
            add_gradients(each.optimizer, each.losses_of(batch, each.optimizer), each.scaler)
        assert torch.allclose(gradient(static), gradient(trainer), rtol=1e-4, atol=1e-6)
        shares.add(trainer.optimizer.prior["xb"])
        for each in (trainer, static):
            each.optimizer.zero_grad()
    assert len(shares) == 3


def test_token_weights_are_one_number_per_task(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.token_weights has 3 numbers, the corpus 2 tasks \(xa, xb\)"):
        one_update(corpus, tmp_path / "run", "method.name=static", "method.token_weights=[1,2,3]")
