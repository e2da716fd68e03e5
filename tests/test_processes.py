"""Several processes train the run that one would, and resume it bit for bit. Real processes, gloo, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

import torch
from test_train import assert_same, final_state, metrics, settings, split
from torch import distributed as dist

from cats.nmt import data, processes
from cats.nmt.config import Config
from cats.nmt.errors import UserError
from cats.nmt.train import Trainer, train

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

EXACT = ["model.dropout=0", "train.steps=12", "train.validate_every=6", "train.log_every=3"]
# Of so small a batch a process often has no sentence of a task, or none at all.
ALONE = {
    "cats": [*EXACT, "train.accumulate=2"],
    "tokens": [*EXACT, "method.name=static", "sampling.batch_tokens=12"],
    "lagrangian": [*EXACT, "method.simplex=lagrangian", "method.alpha_lr=1e-2", "sampling.batch_tokens=40"],
}
WAIT = timedelta(minutes=1)
TOGETHER = ["train.steps=14", "train.validate_every=5", "train.save_every=3", "train.log_every=4"]  # with dropout


def configured(corpus: Path, name: str) -> Config:
    return settings(corpus, *ALONE.get(name, TOGETHER))


def work(rank: int, folder: Path) -> None:
    """What each of two processes does: the runs above, an interrupted one, and what is refused."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=WAIT)
    corpus = folder / "toy"
    for name in ALONE:
        torch.set_default_dtype(torch.float64)
        train(configured(corpus, name), folder / "two" / name, quiet=True)
    torch.set_default_dtype(torch.float32)
    train(configured(corpus, "whole"), folder / "two" / "whole", quiet=True)
    update = Trainer.update

    def killed(trainer: Trainer) -> None:
        if trainer.step == 11:  # the last checkpoint is of update 10, the last line of metrics of update 8
            raise RuntimeError("killed")
        update(trainer)

    Trainer.update = killed  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        train(configured(corpus, "parts"), folder / "two" / "parts", quiet=True)
    Trainer.update = update  # type: ignore[method-assign]
    train(configured(corpus, "parts"), folder / "two" / "parts", resume=True, quiet=True)
    found: dict[str, Any] = {
        "total": processes.total([1.0, float(rank)]),
        "text": processes.of_the_first("şey" if rank == 0 else ""),
        "agree": [processes.agree([0.1, 2.0]), processes.agree([float(rank)])],
        "anybody": [processes.anybody(rank == 1), processes.anybody(False)],
    }
    trainer = Trainer(configured(corpus, "whole"), folder / "two" / "split", resume=False, quiet=True)
    trainer.update()
    if rank:
        trainer.optimizer.weighting.load_state_dict(
            {**trainer.optimizer.weighting.state_dict(), "a": torch.tensor([0.0, 1e-9], dtype=torch.float64)}
        )
    with pytest.raises(UserError, match="do not have the same weights"):
        trainer.log()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tasks = [
        data.Task("xa", "en", "xa", split(200, 1, False), split(20, 2, False), split(5, 3, False)),
        data.Task("xb", "en", "xb", split(40, 4, True), split(21, 5, True), split(5, 6, True)),
    ]
    data.write(data.Corpus("toy", tasks), folder / "toy")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ALONE)
def test_two_processes_train_as_one(folder: Path, tmp_path: Path, name: str) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        train(configured(folder / "toy", name), tmp_path / "one", quiet=True)
    finally:
        torch.set_default_dtype(before)
    ours, theirs = final_state(folder / "two" / name), final_state(tmp_path / "one")
    for key, value in theirs["model"].items():  # float64: the sums are in another order, no more
        torch.testing.assert_close(ours["model"][key], value, rtol=1e-6, atol=1e-9)
    assert ours["best"] == pytest.approx(theirs["best"], rel=1e-9)
    for two, one in zip(metrics(folder / "two" / name), metrics(tmp_path / "one"), strict=True):
        assert two.keys() == one.keys() and two.get("tokens") == one.get("tokens")
        for key in "losses", "alpha", "multipliers", "dots":
            assert (two.get(key) or {}) == pytest.approx(one.get(key) or {}, rel=1e-6, abs=1e-12), key
        assert two.get("valid", {}).get("nll", {}) == pytest.approx(one.get("valid", {}).get("nll", {}), rel=1e-9)


def test_resumed_bit_for_bit(folder: Path) -> None:
    whole, parts = folder / "two" / "whole", folder / "two" / "parts"
    assert_same(final_state(whole), final_state(parts))
    assert metrics(whole) == metrics(parts)
    assert len({record["step"] for record in metrics(whole)}) == 6  # 4, 5, 8, 10, 12, 14: written once, by the first


def test_what_they_agree_on(folder: Path) -> None:
    for rank in range(2):
        found = json.loads((folder / f"{rank}.json").read_text())
        assert found["total"] == [2.0, 1.0] and found["text"] == "şey"
        assert found["agree"] == [True, False] and found["anybody"] == [True, False]


def test_alone_there_is_nothing_to_agree_on() -> None:
    assert processes.count() == 1 and processes.first() and processes.of_the_first("a") == "a"
    assert processes.total([1.5]) == [1.5] and processes.agree([1.0]) and not processes.anybody(False)
    with processes.joined():
        assert processes.count() == 1


@pytest.mark.slow
def test_torchrun(folder: Path, tmp_path: Path) -> None:
    """From the command line: one table, one run directory, no word twice; Ctrl-C saves, and the run goes on."""
    (tmp_path / "config.toml").write_text("[train]\nthreads = 1\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cats"]
    small = [f"--set={part}" for part in ("model.d_model=32", "model.ffn=32", "tokenizer.vocab_size=60")]
    command = [*torchrun, "train", "--data", str(folder / "toy"), "--config", "config.toml", "--steps", "30", *small]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| xa ") == 1 and [run.name for run in (tmp_path / "runs").iterdir()] == ["toy-cats-seed1"]
    assert done.stderr.count("update 30 of 30") == 1
