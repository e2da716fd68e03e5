"""The training run: it learns, it repeats bit for bit, it resumes bit for bit, its files are what they should be."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import apply_overrides, presets, read_config, read_preset
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.data.sampler import Mixture
from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, metrics, settings, write_toy_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_toy_corpus(tmp_path / "toy")
    return tmp_path / "toy"


@pytest.mark.parametrize("method", ["cats", "static"])
def test_two_runs_are_the_same_run(corpus, tmp_path, method):
    config = settings(corpus, f"method.name={method}")
    train(config, tmp_path / "one", quiet=True)
    train(config, tmp_path / "two", quiet=True)
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    assert_same(final_state(tmp_path / "one"), final_state(tmp_path / "two"))
    train(apply_overrides(config, ["train.seed=2"]), tmp_path / "three", quiet=True)
    assert metrics(tmp_path / "one") != metrics(tmp_path / "three")


@pytest.mark.parametrize("stop", [4, 13, 20, 30])
def test_an_interrupted_run_goes_on_bit_for_bit(corpus, tmp_path, stop, monkeypatch, capsys):
    config = settings(corpus)
    train(config, tmp_path / "whole", quiet=True)
    update = Trainer.update

    def interrupted(trainer: Trainer) -> None:
        if trainer.step == stop - 1:  # in the middle of update number ``stop``
            os.kill(os.getpid(), signal.SIGINT)
        update(trainer)

    monkeypatch.setattr(Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", quiet=True)
    assert f"--resume {tmp_path / 'parts'}" in capsys.readouterr().err
    assert final_state(tmp_path / "parts")["step"] == stop
    monkeypatch.setattr(Trainer, "update", update)
    train(read_config(tmp_path / "parts" / "config.toml"), tmp_path / "parts", resume=True, quiet=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_lines_behind_the_checkpoint_are_written_again(corpus, tmp_path, monkeypatch):
    config = settings(corpus, "train.log_every=5")
    train(config, tmp_path / "whole", quiet=True)
    update = Trainer.update

    def killed(trainer: Trainer) -> None:
        if trainer.step == 26:  # the last checkpoint is of update 20, the last line of metrics too, and half a line
            raise RuntimeError("killed")
        update(trainer)

    monkeypatch.setattr(Trainer, "update", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "parts", quiet=True)
    monkeypatch.undo()
    with (tmp_path / "parts" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 26, "lo')
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert [m for m in metrics(tmp_path / "parts") if m["step"] > 20] == [
        m for m in metrics(tmp_path / "whole") if m["step"] > 20
    ]
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_a_run_killed_before_its_first_checkpoint_goes_on(corpus, tmp_path, monkeypatch):
    config = settings(corpus)
    train(config, tmp_path / "whole", quiet=True)

    def killed(trainer: Trainer) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "run", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "parts", quiet=True)
    monkeypatch.undo()
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_cannot_be_created_leaves_nothing(corpus, tmp_path, monkeypatch, there):
    def full(_path: Path, _state: dict[str, Any]) -> None:
        raise UserError("last.pt: the disk is full")

    if there:
        (tmp_path / "run").mkdir()
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        train(settings(corpus), tmp_path / "run", quiet=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "toy"] == (["run"] if there else [])
    assert not there or list((tmp_path / "run").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="no flock")
def test_two_processes_cannot_train_one_run(corpus, tmp_path):
    train(settings(corpus), tmp_path / "run", quiet=True)
    with (
        RunDirectory(tmp_path / "run").training_lock(),
        pytest.raises(UserError, match="another process is training this run"),
    ):
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)
    train(settings(corpus), tmp_path / "run", resume=True, quiet=True)


@pytest.mark.parametrize("change", ["since_log", "optimizer", "shape", "text"])
def test_a_checkpoint_of_another_version_is_named(corpus, tmp_path, change):
    train(settings(corpus), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    state = checkpoint.load(path)
    if change == "shape":
        state["model"] = {name: tensor[:1] for name, tensor in state["model"].items()}
    elif change == "text":
        state["optimizer"] = "moments"
    else:
        del state[change]
    checkpoint.save(path, state)
    with pytest.raises(UserError, match=r"last\.pt does not fit .*config\.toml") as error:
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["{", "7", '{"loss": 1}', '{"step": "x"}'])
def test_damaged_metrics_are_named(corpus, tmp_path, line):
    train(settings(corpus), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "metrics.jsonl"
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    path.write_text(f"{first}\n{line}\n{rest}", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged"):
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)


def test_the_last_updates_are_logged_too(corpus, tmp_path):
    train(settings(corpus, "train.steps=13"), tmp_path / "run", quiet=True)
    lines = [line for line in metrics(tmp_path / "run") if "losses" in line]
    assert [line["step"] for line in lines] == [10, 13]
    assert all(sum(line["tokens"].values()) > 0 for line in lines)


def test_what_is_left_out_is_said(corpus, tmp_path, capsys):
    with (corpus / "train.en-xa.en").open("a") as source, (corpus / "train.en-xa.xa").open("a") as target:
        source.write("alpha\n" + "alpha bravo " * 40 + "\n"), target.write("\nalpha\n")
    config = settings(corpus, "model.max_length=60", "train.steps=1")
    train(config, tmp_path / "run")
    err = capsys.readouterr().err
    assert "en-xa: 1 train pairs left out, a side is blank\n" in err
    assert "xa: 1 training pairs left out, longer than 60 tokens\n" in err
    train(config, tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""


def test_frozen_alpha_is_uniform_weighting(corpus, tmp_path):
    train(settings(corpus, "method.alpha_lr=0", "model.dropout=0"), tmp_path / "cats", quiet=True)
    train(
        settings(corpus, "method.name=static", "method.weights=uniform", "model.dropout=0"),
        tmp_path / "static",
        quiet=True,
    )
    for ours, theirs in zip(metrics(tmp_path / "cats"), metrics(tmp_path / "static"), strict=True):
        for kind in ("losses", "valid"):
            mine, other = (line.get(kind, {}) for line in (ours, theirs))
            # Outer steps add the tasks' gradients one by one, scalarisation sums the losses: fp32 rounding, which Adam
            # amplifies where a gradient is zero but for rounding (the keys' biases); the losses feel little of it.
            assert mine.get("nll", mine) == pytest.approx(other.get("nll", other), rel=1e-4)


@pytest.fixture
def float64():
    """Parameters and activations in float64 (the losses stay in float32)."""
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
def test_a_batch_in_parts_is_the_batch(corpus, tmp_path, float64, method):
    """Also where a task has fewer sentences than there are parts."""
    trainers = []
    for parts in (1, 4):
        config = settings(corpus, *method, f"train.accumulate={parts}", "model.dropout=0", "sampling.temperature=1")
        trainers.append(Trainer(config, tmp_path / str(parts), resume=False, quiet=True))
        for _ in range(12):
            trainers[-1].update()
        trainers[-1].loss_log.read()
    one, four = trainers
    assert one.loss_log.sums["xb"][1] < 0.3 * one.loss_log.sums["xa"][1]
    for task, (nats, tokens) in one.loss_log.sums.items():
        assert four.loss_log.sums[task] == pytest.approx([nats, tokens], rel=1e-6)
    assert four.optimizer.alpha == pytest.approx(one.optimizer.alpha, rel=1e-6)
    assert (len(set(one.optimizer.alpha.values())) == 2) == (method[0] in CATS)
    for ours, theirs in zip(four.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_cross_batch_with_single_sentences_leaves_a_clear_message(corpus, tmp_path):
    config = settings(corpus, "method.cross_batch=true", "method.inner_steps=1", "sampling.batch_tokens=5")
    with pytest.raises(UserError, match=r"needs two sentences of a task .* raise sampling\.batch_tokens"):
        train(config, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_lower_precision_is_close_and_resumes_bit_for_bit(corpus, tmp_path, precision):
    """Statistics too: the factor of the loss scaling must not reach them."""
    exact, config = settings(corpus, "model.dropout=0"), settings(corpus, f"train.precision={precision}")
    train(exact, tmp_path / "fp32", quiet=True)
    close = apply_overrides(config, ["model.dropout=0"])
    train(close, tmp_path / "close", quiet=True)
    for ours, theirs in zip(metrics(tmp_path / "close"), metrics(tmp_path / "fp32"), strict=True):
        if "loss" in ours:
            assert ours["skipped"] == 0 and ours["loss"] != theirs["loss"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
            assert ours["sqnorms"] == pytest.approx(theirs["sqnorms"], rel=0.2)
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
    assert_same(final_state(tmp_path / "kept"), final_state(tmp_path / "recomputed"))


@pytest.mark.slow
def test_a_compiled_run_is_close(corpus, tmp_path):
    exact = settings(corpus, "model.dropout=0", "train.steps=10")
    train(exact, tmp_path / "eager", quiet=True)
    for name, more in (("compiled", []), ("all", ["train.checkpoint_activations=true", "train.accumulate=2"])):
        train(apply_overrides(exact, ["train.compile=true", *more]), tmp_path / name, quiet=True)
        (ours, our_valid), (theirs, their_valid) = metrics(tmp_path / name), metrics(tmp_path / "eager")
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-3)
        assert our_valid["valid"]["nll"] == pytest.approx(their_valid["valid"]["nll"], rel=1e-3)


def test_a_machine_that_cannot_compile_is_told_so(corpus, tmp_path, monkeypatch):
    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(UserError, match=r"torch\.compile does not work here: no working C\+\+ compiler found; leave"):
        train(settings(corpus, "train.compile=true"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["method.cross_batch=true"],
        ["method.loss_term=true"],
        ["method.simplex=lagrangian", "method.alpha_lr=0.01", "method.multiplier_lr=0.01"],
    ],
)
def test_every_kind_of_cats_trains(corpus, tmp_path, more):
    train(settings(corpus, *more), tmp_path / "run", quiet=True)
    last = [line for line in metrics(tmp_path / "run") if "alpha" in line][-1]
    assert last["skipped"] == 0
    assert set(last["alpha"]) == {"xa", "xb"}
    assert len({round(value, 12) for value in last["alpha"].values()}) == 2  # they moved, and not together


def test_the_run_directory(corpus, tmp_path):
    config = settings(corpus)
    train(config, tmp_path / "run", quiet=True)
    assert sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()) == [
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "config.toml",
        "metrics.jsonl",
        "tokenizer.model",
    ]
    assert read_config(tmp_path / "run" / "config.toml") == config
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "losses" in line] == [10, 20, 30]
    assert [line["step"] for line in lines if "valid" in line] == [10, 20, 30]
    best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")
    validations = [line for line in lines if "valid" in line]
    assert best["best"] == min(line["valid"]["all"] for line in validations)
    first = lines[0]
    assert sum(first["alpha"].values()) == pytest.approx(1.0)
    assert first["tokens"].keys() == {"xa", "xb"}


def test_a_changed_corpus_is_noticed(corpus, tmp_path):
    train(settings(corpus), tmp_path / "run", quiet=True)
    path = corpus / "train.en-xa.xa"
    path.write_text(path.read_text(encoding="utf-8").replace("alpha", "omega"), encoding="utf-8")
    with pytest.raises(UserError, match="not the one this run was started on"):
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)


def test_pairs_that_are_too_long_leave_a_clear_message(corpus, tmp_path):
    with pytest.raises(
        UserError, match=r"xa: every training pair is left out \(longer than 3 tokens\); raise model\.max_length"
    ):
        train(settings(corpus, "model.max_length=3"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("more", [[], ["method.name=static", "method.cross_batch=true"]])
def test_a_diverging_run_says_so_in_one_line(corpus, tmp_path, more):
    config = settings(corpus, "train.lr=1e30", "train.warmup=0", "train.steps=100", "model.dropout=0", *more)
    with pytest.raises(UserError, match=r"training diverged: 20 steps in a row .* try a lower train\.lr") as error:
        train(config, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)


def test_updates_do_not_wait_for_the_device(corpus, tmp_path, monkeypatch):
    """A number that Python reads from a tensor costs a wait: the losses are read once per line of metrics."""
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
    assert set(record["losses"]) == {"xa", "xb"} and record["losses"]["xa"] > 0
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
    plain = {"xa": 3.9199, "xb": 4.0917}  # without any of them
    losses = metrics(tmp_path / "whole")[-2]["losses"]
    assert all(map(math.isfinite, losses.values())) and losses != pytest.approx(plain, abs=1e-3)


def test_the_sampling_that_is_configured(corpus, tmp_path):
    more = ["temperature=2", "temperature_end=7", "ratios=[1,3]", "unimax_epochs=4", "tasks_per_update=1"]
    sampling = [f"sampling.{setting}" for setting in more]
    late = ["train.pretrain=xa", "train.pretrain_steps=9", "train.steps=30", "data.valid_pairs=5"]
    trainer = Trainer(settings(corpus, *sampling, *late), tmp_path / "run", resume=False, quiet=True)
    assert trainer.sampler.mixture == Mixture(
        temperature=2.0,
        temperature_end=7.0,
        ratios=(1.0, 3.0),
        unimax_epochs=4.0,
        steps=30,
        pretrain=("xa",),
        pretrain_steps=9,
    )
    assert trainer.sampler.tasks_per_update == 1 and not trainer.sampler.padded
    assert {len(shard) for shard in trainer.validation.shards.values()} == {5}
    with pytest.raises(UserError, match=r"sampling\.ratios has 3 numbers, the corpus 2 tasks \(xa, xb\)"):
        Trainer(settings(corpus, "sampling.ratios=[1,2,3]"), tmp_path / "other", resume=False, quiet=True)


@pytest.mark.parametrize("name", presets())
def test_every_preset_trains(corpus, tmp_path, name):
    """With less of everything that takes time: layers, widths, tokens and updates."""
    less = ["d_model=16", "heads=2", "ffn=16", "encoder_layers=1", "decoder_layers=1"]
    run = ["train.steps=2", "train.threads=1", "sampling.batch_tokens=120", "train.precision=fp32"]
    small = [*(f"model.{setting}" for setting in less), *run, "tokenizer.vocab_size=60", f"data.path={corpus}"]
    config = apply_overrides(read_preset(name), small)
    train(config, tmp_path / "run", quiet=True)
    (record,) = (each for each in metrics(tmp_path / "run") if "losses" in each)
    assert all(map(math.isfinite, record["losses"].values())) and final_state(tmp_path / "run")["step"] == 2


def test_a_language_of_one_sentence(corpus, tmp_path):
    one = Split(["alpha bravo"], ["bravo alpha"])
    tasks = [*read_corpus(corpus).tasks, Task("xc", "en", "xc", one, one, one)]
    write_corpus(Corpus("three", tasks), tmp_path / "three")
    for method in "cats", "static":
        train(settings(tmp_path / "three", f"method.name={method}"), tmp_path / method, quiet=True)
        assert "xc" in metrics(tmp_path / method)[-1]["valid"]["nll"]


def test_the_largest_batch_is_tried_first(corpus, tmp_path, monkeypatch):
    """On a GPU, where memory may be short; it leaves no trace."""
    trainer = Trainer(settings(corpus), tmp_path / "run", resume=False, quiet=True)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.probe_largest_batch()
    assert_same(trainer.model.state_dict(), before)
    assert trainer.loss_log.unread == [] and all(p.grad is None for p in trainer.model.parameters())
    largest = trainer.training.batch(trainer.sampler.largest_batch())
    usual = [trainer.training.batch(trainer.sampler.batch(step)) for step in range(50)]
    assert largest.target_out.numel() >= max(batch.target_out.numel() for batch in usual)
    train(settings(corpus), tmp_path / "plain", quiet=True)
    trainer.run()
    assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "plain"))

    def short(self: Trainer, whole: dict[str, Any]) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trainer, "losses_of", short)
    with pytest.raises(UserError, match=r"out of memory in the largest batch; lower sampling\.batch_tokens"):
        trainer.probe_largest_batch()
    with pytest.raises(UserError, match=r"out of memory in update 1; lower sampling\.batch_tokens"):
        train(settings(corpus), tmp_path / "short", quiet=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_next_batch_is_made_before_the_device_is_waited_for(corpus, tmp_path, monkeypatch, parts):
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
