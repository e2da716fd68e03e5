"""The losses of a batch: in parts, in lower precision, with recomputed and with compiled layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import apply_overrides
from cats.nmt.errors import UserError
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, metrics, settings


@pytest.fixture
def float64():
    """Makes parameters and activations float64. (The losses stay float32.)"""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


STATIC = ["method.name=static"]


CATS = ["method.alpha_lr=0.1"]


@pytest.mark.parametrize(
    "method",
    [STATIC, [*STATIC, "method.weights=uniform"], CATS, [*CATS, "method.cross_batch=true"]],
    ids=["tokens", "uniform", "cats", "cross_batch"],
)
def test_a_batch_in_parts_gives_the_same_update(corpus, tmp_path, float64, method):
    """Gradients of the parts add up to that of the batch, also if a task has fewer sentences than there are parts."""
    trainers = []
    for parts in (1, 4):
        config = settings(corpus, *method, f"train.accumulate={parts}", "model.dropout=0", "sampling.temperature=1")
        trainers.append(Trainer(config, tmp_path / str(parts), resume=False, quiet=True))
        for _ in range(12):
            trainers[-1].update()
        trainers[-1].loss_log.read()
    one, four = trainers
    assert one.loss_log.sums["xb"][1] < 0.3 * one.loss_log.sums["xa"][1]
    for task, (nats, tokens, pairs) in one.loss_log.sums.items():
        assert four.loss_log.sums[task] == pytest.approx([nats, tokens, pairs], rel=1e-6)
    assert four.optimizer.alpha == pytest.approx(one.optimizer.alpha, rel=1e-6)
    assert (len(set(one.optimizer.alpha.values())) == 2) == (method[0] in CATS)
    for ours, theirs in zip(four.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_losses_that_are_computed_twice_are_logged_once(corpus, tmp_path):
    trainers = []
    for engine in ("per_task", "two_pass", "forward_mode"):
        config = settings(corpus, "method.inner_steps=2", f"method.engine={engine}", "model.dropout=0")
        trainers.append(Trainer(config, tmp_path / engine, resume=False, quiet=True))
        for _ in range(4):
            trainers[-1].update()
        trainers[-1].loss_log.read()
        assert trainers[-1].optimizer.statistics["engine"] == engine
    plain, *others = trainers
    for other in others:
        for task, (nats, tokens, pairs) in plain.loss_log.sums.items():
            assert other.loss_log.sums[task] == pytest.approx([nats, tokens, pairs], rel=1e-5)
        assert other.optimizer.alpha == pytest.approx(plain.optimizer.alpha, rel=1e-4)


@pytest.mark.parametrize(
    "more", [[], ["train.accumulate=3", "train.checkpoint_activations=true", "model.norm=scalenorm"]]
)
def test_engines_agree(corpus, tmp_path, float64, more):
    """One forward and one backward pass for all tasks, or one for each task: the same α, losses and model."""
    trainers = []
    for engine in ("per_task", "auto"):
        config = settings(corpus, f"method.engine={engine}", "method.alpha_lr=0.5", "model.dropout=0", *more)
        trainers.append(Trainer(config, tmp_path / engine, resume=False, quiet=True))
        for _ in range(9):
            trainers[-1].update()
    one, other = trainers
    assert [each.optimizer.statistics["engine"] for each in trainers] == ["per_task", "one_pass"]
    assert other.optimizer.alpha == pytest.approx(one.optimizer.alpha, rel=1e-6)  # the losses are float32
    assert other.optimizer.statistics["dots"] == pytest.approx(one.optimizer.statistics["dots"], rel=1e-5)
    for ours, theirs in zip(other.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    other.loss_log.read(), one.loss_log.read()
    assert other.loss_log.sums["xa"] == pytest.approx(one.loss_log.sums["xa"])


@pytest.mark.parametrize(
    "more", [[], ["train.accumulate=2", "sampling.batch_tokens=12"], ["method.rows=0.5"]], ids=["", "parts", "rows"]
)
def test_an_outer_step_first_after_a_resume_changes_nothing(corpus, tmp_path, more):
    """Bit for bit, though the engine has forgotten what it knew; also if a part of a batch is empty."""
    config = settings(corpus, "train.steps=14", "train.validate_every=14", *more)
    train(config, tmp_path / "whole", quiet=True)
    part = Trainer(config, tmp_path / "parts", resume=False, quiet=True)
    part.model.train()
    for _ in range(8):
        part.update()
    part.save()
    assert part.optimizer.statistics["task_gradient_steps"] == 2
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_cross_batch_with_single_sentences_leaves_a_clear_message(corpus, tmp_path):
    config = settings(corpus, "method.cross_batch=true", "method.inner_steps=1", "sampling.batch_tokens=5")
    with pytest.raises(UserError, match=r"needs two sentences of a task .* raise sampling\.batch_tokens"):
        train(config, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_lower_precision_is_close_and_resumes_bit_for_bit(corpus, tmp_path, precision):
    """The statistics are close too: they must not contain the factor of the loss scaling."""
    exact, config = settings(corpus, "model.dropout=0"), settings(corpus, f"train.precision={precision}")
    train(exact, tmp_path / "fp32", quiet=True)
    close = apply_overrides(config, ["model.dropout=0"])
    train(close, tmp_path / "close", quiet=True)
    for ours, theirs in zip(metrics(tmp_path / "close"), metrics(tmp_path / "fp32"), strict=True):
        if "loss" in ours:
            assert ours["skipped"] == 0 and ours["loss"] != theirs["loss"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
            assert ours["dots"] == pytest.approx(theirs["dots"], rel=0.2)
    assert bool(final_state(tmp_path / "close")["scaler"]) == (precision == "fp16")
    train(config, tmp_path / "whole", quiet=True)
    part = Trainer(config, tmp_path / "parts", resume=False, quiet=True)
    part.model.train()
    for _ in range(7):
        part.update()
    part.save()
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_recomputed_layers_change_nothing(corpus, tmp_path):
    for name, more in (("kept", []), ("recomputed", ["train.checkpoint_activations=true"])):
        train(settings(corpus, *more), tmp_path / name, quiet=True)
    assert metrics(tmp_path / "kept") == metrics(tmp_path / "recomputed")
    kept, recomputed = (final_state(tmp_path / name) for name in ("kept", "recomputed"))
    for state in (kept, recomputed):
        del state["settings"]  # they differ in train.checkpoint_activations
    assert_same(kept, recomputed)


@pytest.mark.slow
def test_a_compiled_run_is_close(corpus, tmp_path):
    exact = settings(corpus, "model.dropout=0", "train.steps=10")
    train(exact, tmp_path / "eager", quiet=True)
    for name, more in (("compiled", []), ("all", ["train.checkpoint_activations=true", "train.accumulate=2"])):
        train(apply_overrides(exact, ["train.compile=true", *more]), tmp_path / name, quiet=True)
        (ours, our_valid), (theirs, their_valid) = metrics(tmp_path / name), metrics(tmp_path / "eager")
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-3)
        assert our_valid["valid"]["nll"] == pytest.approx(their_valid["valid"]["nll"], rel=1e-3)


def test_a_missing_compiler_is_an_error_before_training(corpus, tmp_path, monkeypatch):
    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(UserError, match=r"torch\.compile does not work here: no working C\+\+ compiler found; leave"):
        train(settings(corpus, "train.compile=true"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
