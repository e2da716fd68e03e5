"""The exponential moving average of the parameters (train.ema)."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch
from torch import nn

from cats.nmt.config.toml import read_config
from cats.nmt.training import checkpoint
from cats.nmt.training.average import ParameterAverage
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from cats.nmt.training.validation import validation_nll
from tests.nmt.common import assert_same, assert_same_runs, final_state, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("average") / "toy")


def test_it_is_the_weighted_mean_of_the_path() -> None:
    """The weights of the parameters after each update, in float64: those of the start are soon forgotten."""
    model = nn.Linear(3, 2, dtype=torch.float64)
    average = ParameterAverage(model, 0.9)
    expected = model.weight.detach().clone()
    for t in range(100):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        average.update()
        decay = (1 + t) / (10 + t) if t < 80 else 0.9  # (1 + 80) / (10 + 80) = 0.9
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected, rtol=1e-12, atol=1e-12)  # float64
    before = model.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), average.in_model():  # also after an error, the parameters come back
        assert torch.equal(average.average["weight"], before)  # they have changed places
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-12, atol=1e-12)
        raise ZeroDivisionError
    assert torch.equal(model.weight, before)


def test_a_resumed_run_is_exact_and_starts_the_average_again_at_the_reset(corpus: Path, tmp_path: Path) -> None:
    way = ["train.ema=0.8", "train.restart=true", "train.pretrain_steps=21"]
    train(short(corpus, *way), tmp_path / "whole", quiet=True)
    for kill in (21, 33):
        run = tmp_path / f"parts-{kill}"
        with interrupted(kill):
            train(short(corpus, *way), run, quiet=True)
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)
        assert_same_runs(tmp_path / "whole", run)
    assert final_state(tmp_path / "whole")["average"]["updates"] == 60 - 21


def test_the_average_is_what_is_validated_and_kept(corpus: Path, tmp_path: Path) -> None:
    train(short(corpus, "train.ema=0.9"), tmp_path / "run", quiet=True)
    train(short(corpus), tmp_path / "plain", quiet=True)
    state = final_state(tmp_path / "run")
    assert_same(state["model"], final_state(tmp_path / "plain")["model"])  # training does not change
    average = state["average"]["parameters"]
    kept = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-60.pt")["model"]
    for name, value in average.items():
        assert torch.equal(value, kept[name]) and not torch.equal(value, state["model"][name])
    loaded = RunDirectory(tmp_path / "run").load_model("last").model
    assert_same(dict(loaded.named_parameters()), average)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    mean = checkpoint.average([last])["model"]  # as cats average; no other command uses the parameters of last.pt
    assert all(torch.equal(mean[name], value) for name, value in average.items())
    trainer = Trainer(short(corpus, "train.ema=0.9"), tmp_path / "run", resume=True, quiet=True)
    trainer.model.load_state_dict(kept)
    found = [line["valid"]["nll"] for line in metrics(tmp_path / "run") if "valid" in line][-1]
    assert validation_nll(trainer.model, trainer.validation, 240) == pytest.approx(found, rel=1e-6)  # float32 sums


def test_a_run_that_had_no_average_gets_one(corpus: Path, tmp_path: Path) -> None:
    """As with a checkpoint of an earlier version: it starts from the parameters of the checkpoint."""
    with interrupted(21):
        train(short(corpus), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    state = checkpoint.load(path)
    del state["average"]
    checkpoint.save(path, state)
    trainer = Trainer(short(corpus, "train.ema=0.9"), tmp_path / "run", resume=True, quiet=True)
    assert trainer.average.updates == 0
    assert_same(trainer.average.average, {name: p.detach() for name, p in trainer.model.named_parameters()})


def test_a_skipped_update_does_not_spoil_it(corpus: Path, tmp_path: Path) -> None:
    config = short(corpus, "train.ema=0.9", "train.precision=fp16", "method.name=static")
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    scale = trainer.scaler.state_dict()
    trainer.scaler.load_state_dict({**scale, "scale": 1e38})  # all gradients overflow
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.update()
    assert trainer.scaler.get_scale() < 1e38 and trainer.average.updates == 1
    assert_same(dict(trainer.model.named_parameters()), before)
    assert_same(trainer.average.average, before)
