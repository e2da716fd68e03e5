"""Sharded parameters: two processes train as one, and their checkpoints have whole tensors."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch
from torch import distributed as dist

from cats.nmt.config.schema import Config
from cats.nmt.training import sharding
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from cats.nmt.training.validation import validation_nll
from tests.nmt.common import final_state, metrics, settings, write_toy_corpus
from tests.processes import spawn

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

EXACT = ["model.dropout=0", "train.steps=8", "train.validate_every=4", "train.log_every=3", "data.valid_pairs=3"]
# With such small batches, a process often has no sentence of some task, or no sentence at all.
RUNS = {
    "fsdp": ["train.accumulate=2", "train.keep=2", "train.ema=0.9", "train.validate_bleu=2", "train.best_metric=chrf"],
    "two_pass": ["method.engine=two_pass", "train.checkpoint_activations=true"],
    "tokens": ["method.name=static", "sampling.batch_tokens=12"],
    "hybrid": ["train.distributed=hybrid"],
    "famo": ["method.name=famo", "sampling.batch_tokens=40"],
    "pcgrad": ["method.name=pcgrad", "sampling.batch_tokens=40"],
}
STOP = 5  # the update after which a run is interrupted; the next one is an outer step


def configured(corpus: Path, name: str, *more: str) -> Config:
    return settings(corpus, *EXACT, "train.distributed=fsdp", *RUNS[name], *more)


def nll(trainer: Trainer) -> dict[str, float]:
    return validation_nll(trainer.model, trainer.validation, 240, in_step=True)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    wait = timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=wait)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "1")  # hybrid: two machines with a process each
        for name in RUNS:
            train(configured(folder / "toy", name), folder / "two" / name, quiet=True)
    part = Trainer(configured(folder / "toy", "fsdp"), folder / "two" / "part", resume=False, quiet=True)
    part.model.train()
    for _ in range(STOP):
        part.update()
        if part.step == 3:
            part.log()
        if part.step == 4:
            part.validate()
    params = list(part.model.parameters())
    assert sum(p.to_local().numel() for p in params) < 0.6 * sum(p.numel() for p in params)
    with part.average.in_model():
        averaged = nll(part)
    sharding.drop_gathered(part.model)
    assert nll(part) != averaged  # this gathers the parameters
    with part.average.in_model():
        assert nll(part) == averaged  # with none of those
    part.save()
    if rank == 0:
        shutil.copytree(folder / "two" / "part", folder / "one" / "part")
    dist.barrier()
    train(configured(folder / "toy", "fsdp"), folder / "two" / "part", resume=True, quiet=True)
    bf16 = configured(folder / "toy", "fsdp", "train.communication=bf16")
    train(bf16, folder / "two" / "bf16", quiet=True)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    write_toy_corpus(folder / "toy")
    (folder / "one").mkdir()
    spawn(work, (folder,), 2)
    return folder


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_close(one: Path, other: Path) -> None:
    """float64: only the order of the sums differs. The losses are float32."""
    ours, theirs = final_state(one), final_state(other)
    assert ours.keys() == theirs.keys() and ours["model"].keys() == theirs["model"].keys()
    for name, value in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], value, rtol=1e-5, atol=1e-8)
    for name, value in theirs["average"].get("parameters", {}).items():
        torch.testing.assert_close(ours["average"]["parameters"][name], value, rtol=1e-5, atol=1e-8)
    for i, moments in theirs["optimizer"]["state"].items():
        assert {k: v.shape for k, v in ours["optimizer"]["state"][i].items()} == {
            k: v.shape for k, v in moments.items()
        }
    for two, single in zip(metrics(one), metrics(other), strict=True):
        assert two.get("tokens") == single.get("tokens") and two.get("scores") == single.get("scores")
        assert two.get("examples") == single.get("examples")  # pairs that only fill up a batch do not count
        for key in "losses", "alpha", "dots":
            assert (two.get(key) or {}) == pytest.approx(single.get(key) or {}, rel=1e-5), key
        assert two.get("valid", {}).get("nll", {}) == pytest.approx(single.get("valid", {}).get("nll", {}), rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_sharded_processes_train_as_one(folder: Path, float64: None, name: str) -> None:
    train(configured(folder / "toy", name), folder / "one" / name, quiet=True)
    assert_close(folder / "two" / name, folder / "one" / name)
    RunDirectory(folder / "two" / name).load_model()


def test_an_interrupted_run_goes_on_with_any_number_of_processes(folder: Path, float64: None) -> None:
    train(configured(folder / "toy", "fsdp"), folder / "one" / "part", resume=True, quiet=True)
    assert_close(folder / "one" / "part", folder / "two" / "fsdp")
    for name, value in final_state(folder / "two" / "fsdp")["model"].items():
        assert torch.equal(final_state(folder / "two" / "part")["model"][name], value)


def test_gradients_may_be_exchanged_in_bfloat16(folder: Path) -> None:
    ours, exact = (metrics(folder / "two" / name)[-1]["valid"]["all"] for name in ("bf16", "fsdp"))
    assert ours != exact and ours == pytest.approx(exact, rel=0.02)
