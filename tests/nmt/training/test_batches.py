"""The batches of a run: the configured sampling, and the batch that is built in advance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("sentencepiece")

from cats.engines.one_pass import OnePass
from cats.engines.pending import UnsupportedError
from cats.nmt.data.sampler import Mixture
from cats.nmt.errors import UserError
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, settings


@pytest.mark.parametrize(
    ("setting", "mixture"),
    [
        ("temperature_end=7", {"temperature_end": 7.0}),
        ("ratios=[1,3]", {"ratios": (1.0, 3.0)}),
        ("unimax_epochs=4", {"unimax_epochs": 4.0}),
    ],
)
def test_the_sampling_that_is_configured(corpus, tmp_path, setting, mixture):
    sampling = [f"sampling.{each}" for each in ("temperature=2", setting, "tasks_per_update=1")]
    late = ["train.pretrain=xa", "train.pretrain_steps=9", "train.steps=30", "data.valid_pairs=5"]
    trainer = Trainer(settings(corpus, *sampling, *late), tmp_path / "run", resume=False, quiet=True)
    assert trainer.sampler.mixture == Mixture(temperature=2.0, steps=30, pretrain=("xa",), pretrain_steps=9, **mixture)
    assert trainer.sampler.tasks_per_update == 1 and not trainer.sampler.padded
    assert {len(shard) for shard in trainer.validation.shards.values()} == {5}
    with pytest.raises(UserError, match=r"sampling\.ratios has 3 numbers, the corpus 2 tasks \(xa, xb\)"):
        Trainer(settings(corpus, "sampling.ratios=[1,2,3]"), tmp_path / "other", resume=False, quiet=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_next_batch_is_built_before_the_step(corpus, tmp_path, monkeypatch, parts):
    config = settings(corpus, "method.name=static", f"train.accumulate={parts}")
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    did: list[str] = []
    for owner, name in (trainer.training, "batch"), (trainer.model, "hidden"), (trainer.optimizer, "step"):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, of=original, name=name, **k: did.append(name) or of(*a, **k))
    for _ in range(3):
        trainer.update()
    rest = ["batch", "hidden"] * (parts - 1)
    assert did == ["batch", *["hidden", *rest, "batch", "step"] * 3]


def test_the_largest_batch_is_tried_first(corpus, tmp_path, monkeypatch):
    """The probe changes neither the model nor the run, and running out of memory names the settings to change."""
    trainer = Trainer(settings(corpus), tmp_path / "run", resume=False, quiet=True)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    used: list[bool] = []
    one_pass = OnePass.backward
    monkeypatch.setattr(OnePass, "backward", lambda *a, **k: used.append(k["immediate"]) or one_pass(*a, **k))
    trainer.probe_largest_batch()
    assert used == [True]  # an outer step that frees what it can, as those of the run do
    assert_same(trainer.model.state_dict(), before)
    assert trainer.loss_log.unread == [] and all(p.grad is None for p in trainer.model.parameters())
    largest = trainer.training.batch(trainer.sampler.largest_batch())
    usual = [trainer.training.batch(trainer.sampler.batch(step)) for step in range(50)]
    assert largest.target_out.numel() >= max(batch.target_out.numel() for batch in usual)
    train(settings(corpus), tmp_path / "plain", quiet=True)
    trainer.run()
    assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "plain"))

    def short(self: Trainer, *_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trainer, "losses_of", short)
    with pytest.raises(UserError, match=r"in the largest batch; lower sampling\.batch_tokens.* one_pass does not"):
        trainer.probe_largest_batch()
    where = "the largest batch" if trainer.device.type == "cuda" else "update 1"  # on the CPU it is not tried
    with pytest.raises(
        UserError, match=rf"in {where}; .* per_task keeps 2 gradients: set method\.engine=auto, or lower"
    ):
        train(settings(corpus, "method.engine=per_task"), tmp_path / "short", quiet=True)


def test_advice_when_out_of_memory_is_about_the_engine_that_was_chosen(corpus, tmp_path, monkeypatch):
    """The engine auto may have refused the one that is expected."""

    def refuse(*_: Any, **__: Any) -> None:
        raise UnsupportedError("engine one_pass: not this model")

    monkeypatch.setattr(OnePass, "backward", refuse)
    trainer = Trainer(settings(corpus, "method.inner_steps=1"), tmp_path / "run", resume=False, quiet=True)
    trainer.update()
    assert trainer.optimizer.statistics["engine"] == "per_task"
    with (
        pytest.raises(UserError, match=r"per_task keeps 2 gradients: set method\.engine=two_pass, or lower"),
        trainer.out_of_memory_advice("update 2"),
    ):
        raise torch.OutOfMemoryError
