"""The training loop: it repeats bit for bit, logs, validates, and trains with every setting."""

from __future__ import annotations

import math
import os

import pytest
import torch

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import apply_overrides, presets, read_preset
from cats.nmt.errors import UserError
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, metrics, settings


def test_examples_are_the_sentence_pairs_of_the_batches(corpus, tmp_path):
    config = settings(corpus, "train.steps=20", "train.accumulate=3")
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    batches = [trainer.batches.take(step).indices for step in range(20)]
    trainer.run()
    lines = [line for line in metrics(tmp_path / "run") if "losses" in line]
    for line, drawn in zip(lines, (batches[:10], batches[10:]), strict=True):
        assert line["examples"] == {task: sum(len(batch.get(task, ())) for batch in drawn) for task in ("xa", "xb")}


@pytest.mark.parametrize("method", ["cats", "static"])
def test_two_runs_are_the_same_run(corpus, tmp_path, method):
    config = settings(corpus, f"method.name={method}")
    train(config, tmp_path / "one", quiet=True)
    train(config, tmp_path / "two", quiet=True)
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    assert_same(final_state(tmp_path / "one"), final_state(tmp_path / "two"))
    train(apply_overrides(config, ["train.seed=2"]), tmp_path / "three", quiet=True)
    assert metrics(tmp_path / "one") != metrics(tmp_path / "three")


def test_the_last_updates_are_logged_too(corpus, tmp_path):
    train(settings(corpus, "train.steps=13"), tmp_path / "run", quiet=True)
    lines = [line for line in metrics(tmp_path / "run") if "losses" in line]
    assert [line["step"] for line in lines] == [10, 13]
    assert all(sum(line["tokens"].values()) > 0 for line in lines)


def test_metrics_have_the_prior_that_alpha_is_relative_to(corpus, tmp_path):
    train(settings(corpus, "method.strength=0", "train.log_every=3"), tmp_path / "cats", quiet=True)
    lines = [line for line in metrics(tmp_path / "cats") if "alpha" in line]
    assert len({line["prior"]["xb"] for line in lines}) > 1 and all(line["alpha"] == line["prior"] for line in lines)


def test_frozen_alpha_is_uniform_weighting(corpus, tmp_path):
    train(
        settings(corpus, "method.alpha_lr=0", "method.prior=uniform", "model.dropout=0"), tmp_path / "cats", quiet=True
    )
    train(
        settings(corpus, "method.name=static", "method.weights=uniform", "model.dropout=0"),
        tmp_path / "static",
        quiet=True,
    )
    for ours, theirs in zip(metrics(tmp_path / "cats"), metrics(tmp_path / "static"), strict=True):
        for kind in ("losses", "valid"):
            mine, other = (line.get(kind, {}) for line in (ours, theirs))
            # CATS adds the gradients of the tasks, the static method adds their losses. This differs by fp32 rounding.
            # Adam amplifies it where the true gradient is zero (the biases of the keys), with little effect on losses.
            assert mine.get("nll", mine) == pytest.approx(other.get("nll", other), rel=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        ["method.cross_batch=true"],
        ["method.direction=momentum", "train.accumulate=2"],
        ["method.direction=update", "method.engine=per_task"],
        ["method.direction=preconditioned"],
        ["method.loss_term=true"],
        ["method.simplex=lagrangian", "method.alpha_lr=0.01", "method.multiplier_lr=0.01"],
    ],
)
def test_every_kind_of_cats_trains(corpus, tmp_path, more):
    train(settings(corpus, *more), tmp_path / "run", quiet=True)
    last = [line for line in metrics(tmp_path / "run") if "alpha" in line][-1]
    assert last["skipped"] == 0
    assert set(last["alpha"]) == {"xa", "xb"}
    assert len({round(value, 12) for value in last["alpha"].values()}) == 2  # alpha moved, and not to equal values


DIVERGING = ["train.lr=1e30", "train.warmup=0", "model.dropout=0"]


@pytest.mark.parametrize("more", [[], ["method.name=static", "method.cross_batch=true"]])
def test_a_diverging_run_says_so_in_one_line(corpus, tmp_path, more):
    config = settings(corpus, *DIVERGING, "train.steps=100", "train.validate_every=100", *more)
    said = r"training diverged at update 2 \(20 steps in a row .*\): lower train\.lr and start a new run$"
    with pytest.raises(UserError, match=said) as error:
        train(config, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(UserError, match=said):
        RunDirectory(tmp_path / "run").load_model()


@pytest.mark.parametrize("more", [["train.validate_every=5", "train.patience=3"], ["train.steps=4"]])
def test_a_validation_that_is_not_finite_ends_the_training(corpus, tmp_path, more):
    config = settings(corpus, *DIVERGING, *more)
    said = r"training diverged at update 2 \(the validation NLL of xa, xb is not finite\): lower train\.lr"
    for resume in (False, True):
        with pytest.raises(UserError, match=said):
            train(config, tmp_path / "run", resume=resume, quiet=True)
    assert metrics(tmp_path / "run")[-1]["step"] <= 5  # it did not wait
    with pytest.raises(UserError, match=said):
        RunDirectory(tmp_path / "run").load_model()


def test_a_run_that_diverges_in_validation_only_keeps_its_best_model(corpus, tmp_path, monkeypatch):
    def broken_later(model, dataset, batch_tokens, *, in_step):
        return {"xa": 3.0, "xb": 3.0 if calls.append(1) or len(calls) == 1 else math.inf}

    calls: list[int] = []
    monkeypatch.setattr("cats.nmt.training.trainer.validation_nll", broken_later)
    with pytest.raises(UserError, match=r"at update 20 \(the validation NLL of xb .*; best\.pt has the best model"):
        train(settings(corpus), tmp_path / "run", quiet=True)
    RunDirectory(tmp_path / "run").load_model()
    assert RunDirectory(tmp_path / "run").divergence().startswith("training diverged at update 20")
    assert metrics(tmp_path / "run")[-2]["valid"] == {"nll": {"xa": 3.0, "xb": None}, "all": None}


def test_without_validation_pairs_the_last_loss_tells(corpus, tmp_path):
    for path in corpus.glob("valid.*"):
        path.unlink()
    config = settings(corpus, *DIVERGING, "train.steps=8", "train.validate_every=4")
    with pytest.raises(UserError, match=r"diverged at update 2 \(the loss of the last update is not finite\)"):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_updates_do_not_wait_for_the_device(corpus, tmp_path, monkeypatch):
    """Reading a number from a tensor waits for the device: the losses are read once per line of metrics."""
    trainer = Trainer(settings(corpus, "method.inner_steps=9"), tmp_path / "run", resume=False, quiet=True)
    trainer.update()
    read = []
    for name in ("item", "__float__", "__int__", "nonzero"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, call=original: read.append(call) or call(tensor))
    trainer.update()
    trainer.update()
    assert read == [] and trainer.loss_log.sums == {}
    record = trainer.log()
    assert set(record.losses) == {"xa", "xb"} and record.losses["xa"] > 0
    assert trainer.loss_log.unread == []


@pytest.mark.parametrize(
    "more",
    [
        ["sampling.ratios=[1,3]", "sampling.budget=padded"],
        ["sampling.unimax_epochs=2", "data.max_ratio=3", "tokenizer.character_coverage=0.99"],
        ["sampling.temperature=1", "sampling.temperature_end=5", "data.valid_pairs=5"],
        ["sampling.tasks_per_update=1", "model.norm=rmsnorm", "model.embedding_norm=true", "train.schedule=noam"],
        ["model.norm=scalenorm", "model.embeddings=separate", "tokenizer.source_tag=replace-eos"],
        ["model.norm=layernorm-plain", "model.attention_dropout=0.1", "model.activation_dropout=0.1"],
        ["train.schedule=constant", "train.warmup_start=1e-4", "train.clip=0", "tokenizer.target_tag=true"],
    ],
    ids=lambda more: more[0],
)
def test_every_option_trains_and_resumes_bit_for_bit(corpus, tmp_path, more):
    config = settings(corpus, *more, "train.steps=8", "train.save_every=3", "train.validate_every=8", "train.lr=0.01")
    train(config, tmp_path / "whole", quiet=True)
    update = Trainer.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", lambda trainer: update(trainer) if trainer.step < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "parts", quiet=True)
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    plain = {"xa": 3.9199, "xb": 4.0917}  # the losses without any of these settings
    losses = metrics(tmp_path / "whole")[-2]["losses"]
    assert all(map(math.isfinite, losses.values())) and losses != pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("name", presets())
def test_every_preset_trains(corpus, tmp_path, name):
    """The presets with fewer and smaller layers, fewer tokens and fewer updates."""
    less = ["d_model=16", "heads=2", "ffn=16", "encoder_layers=1", "decoder_layers=1"]
    run = ["train.steps=2", "train.threads=1", "sampling.batch_tokens=120", "train.precision=fp32"]
    small = [*(f"model.{setting}" for setting in less), *run, "tokenizer.vocab_size=60", f"data.path={corpus}"]
    config = apply_overrides(read_preset(name), small)
    train(config, tmp_path / "run", quiet=True)
    (record,) = (each for each in metrics(tmp_path / "run") if "losses" in each)
    assert all(map(math.isfinite, record["losses"].values())) and final_state(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.d_model=65536", r"the model, with at least [0-9,]+ parameters, needs more than [0-9,]+ GiB of memory"),
        ("model.ffn=1000000 model.d_model=4096", r"lower model\.d_model, model\.ffn or layers$"),
        (
            "sampling.batch_tokens=10000000 model.d_model=4096",
            r"a batch of 10,000,000 tokens needs more than .*lower",
        ),
    ],
)
def test_what_cannot_fit_is_refused_before_training(corpus, tmp_path, monkeypatch, change, message):
    pages = (32 << 30) // os.sysconf("SC_PAGE_SIZE")
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else sysconf(name))
    with pytest.raises(UserError, match=message):
        train(settings(corpus, *change.split()), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
