"""Two processes train the same run as one process, and resume it bit for bit. Real processes with gloo on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

import torch
from torch import distributed as dist

from cats.nmt.config.schema import Config
from cats.nmt.data.corpus import Corpus, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint, processes
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, metrics, settings, split
from tests.processes import run_command, spawn, stop

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

EXACT = ["model.dropout=0", "train.steps=12", "train.validate_every=6", "train.log_every=3"]
# With such small batches, a process often has no sentence of some task, or no sentence at all.
ALONE = {
    "cats": [*EXACT, "train.accumulate=2"],
    "tokens": [*EXACT, "method.name=static", "sampling.batch_tokens=12", "train.validate_bleu=1"],
    "lagrangian": [*EXACT, "method.simplex=lagrangian", "method.alpha_lr=1e-2", "sampling.batch_tokens=40"],
    "famo": [*EXACT, "method.name=famo", "sampling.batch_tokens=40"],
    "gradnorm": [*EXACT, "method.name=gradnorm", "sampling.batch_tokens=40"],
    "pcgrad": [*EXACT, "method.name=pcgrad", "train.accumulate=2", "sampling.batch_tokens=40"],
    "losses": [*EXACT, "method.name=mirror", "method.options=period=2,first=0,rate=1", "sampling.batch_tokens=40"],
    "gradients": [*EXACT, "method.name=multidds-s", "method.options=period=5,rate=0.01"],
    "trusted": [*EXACT, "method.name=target-projection", "sampling.batch_tokens=12"],
    "teachers": [*EXACT, "method.name=lssd", "method.options=wait=0", "sampling.batch_tokens=12", "train.ema=0.5"],
}
WAIT = timedelta(minutes=1)
TOGETHER = ["train.steps=14", "train.validate_every=5", "train.save_every=3", "train.log_every=4"]  # with dropout


def configured(corpus: Path, name: str) -> Config:
    return settings(corpus, *ALONE.get(name, TOGETHER))


def work(rank: int, folder: Path) -> None:
    """Runs in each of two processes: the runs above, an interrupted one, and settings that are refused."""
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
        "total": processes.all_reduce_sum([1.0, float(rank)]),
        "text": processes.broadcast_text("şey" if rank == 0 else ""),
        "agree": [processes.equal_numbers([0.1, 2.0]), processes.equal_numbers([float(rank)])],
        "anybody": [processes.any_process(rank == 1), processes.any_process(False)],
    }
    trainer = Trainer(configured(corpus, "whole"), folder / "two" / "split", resume=False, quiet=True)
    trainer.update()
    if rank:
        trainer.optimizer.weighting.load_state_dict(
            {**trainer.optimizer.weighting.state_dict(), "a": torch.tensor([0.0, 1e-9], dtype=torch.float64)}
        )
    with pytest.raises(UserError, match="no longer have the same model or task weights"):
        trainer.log()
    refused = {"method.cross_batch=true": "needs a process that has all", f"train.seed={rank}": "different text or set"}
    refused |= {
        f"train.distributed=fsdp method.name={name}": f"{name} needs train.distributed = replicas"
        for name in ("lssd", "target-projection")
    }
    for setting, message in refused.items():
        with pytest.raises(UserError, match=message):
            Trainer(settings(corpus, *setting.split()), folder / "two" / "refused", resume=False, quiet=True)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tasks = [
        Task("xa", "en", "xa", split(200, 1, False), split(20, 2, False), split(5, 3, False)),
        Task("xb", "en", "xb", split(40, 4, True), split(21, 5, True), split(5, 6, True)),
    ]
    write_corpus(Corpus("toy", tasks), folder / "toy")
    spawn(work, (folder,), 2)
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
    for key, value in theirs["model"].items():  # float64: only the order of the sums differs
        torch.testing.assert_close(ours["model"][key], value, rtol=1e-6, atol=1e-9)
    assert ours["best"] == pytest.approx(theirs["best"], rel=1e-9)
    for two, one in zip(metrics(folder / "two" / name), metrics(tmp_path / "one"), strict=True):
        assert two.keys() == one.keys() and two.get("tokens") == one.get("tokens")
        assert two.get("examples") == one.get("examples") and two.get("scores") == one.get("scores")
        for key in "losses", "alpha", "multipliers", "dots", "probabilities":
            assert (two.get(key) or {}) == pytest.approx(one.get(key) or {}, rel=1e-6, abs=1e-12), key
        assert two.get("valid", {}).get("nll", {}) == pytest.approx(one.get("valid", {}).get("nll", {}), rel=1e-9)


def test_resumed_bit_for_bit(folder: Path) -> None:
    whole, parts = folder / "two" / "whole", folder / "two" / "parts"
    assert_same(final_state(whole), final_state(parts))
    assert metrics(whole) == metrics(parts)
    assert len({record["step"] for record in metrics(whole)}) == 6  # 4, 5, 8, 10, 12, 14, each once


def test_collectives(folder: Path) -> None:
    for rank in range(2):
        found = json.loads((folder / f"{rank}.json").read_text())
        assert found["total"] == [2.0, 1.0] and found["text"] == "şey"
        assert found["agree"] == [True, False] and found["anybody"] == [True, False]


def test_one_process_alone() -> None:
    assert processes.world_size() == 1 and processes.is_main() and processes.broadcast_text("a") == "a"
    assert (
        processes.all_reduce_sum([1.5]) == [1.5] and processes.equal_numbers([1.0]) and not processes.any_process(False)
    )
    with processes.process_group():
        assert processes.world_size() == 1


def test_a_run_of_two_processes_resumes_with_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "two" / "parts", tmp_path / "run")
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    state["since_log"] = [{"xa": [1.0, 2.0, 1.0]}, {"xa": [3.0, 4.0, 2.0], "xb": [5.0, 6.0, 3.0]}]
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last.pt", state)
    trainer = Trainer(configured(folder / "toy", "parts"), tmp_path / "run", resume=True, quiet=True)
    assert trainer.loss_log.sums == {"xa": [4.0, 6.0, 3.0], "xb": [5.0, 6.0, 3.0]}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "torchrun, which also sets RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "the processes cannot connect: "),
    ],
)
def test_processes_that_torchrun_did_not_start(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in processes.TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), processes.process_group():
        pass


@pytest.mark.parametrize(
    ("groups", "shared", "separate"), [("1", "True", True), ("2", "True", False), ("1", "False", False)]
)
def test_restarted_processes_find_no_addresses_of_killed_ones(
    monkeypatch: pytest.MonkeyPatch, groups: str, shared: str, separate: bool
) -> None:
    """torchrun on one machine: each start of the processes has its own part of the store. Otherwise torch decides."""
    server = dist.TCPStore("localhost", 0, is_master=True)
    variables = {"GROUP_WORLD_SIZE": groups, "TORCHELASTIC_USE_AGENT_STORE": shared, "MASTER_ADDR": "localhost"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stores = []
    for count in "0", "1":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        if store := processes._store_of_this_start(server.port):
            assert not store.check(["address"])
            store.set("address", count)
            stores.append(store)
    assert len(stores) == 2 * separate


@pytest.mark.slow
def test_torchrun(folder: Path, tmp_path: Path) -> None:
    """From the command line: Ctrl-C saves, the run resumes, and only one process prints and makes a run directory."""
    (tmp_path / "config.toml").write_text("[train]\nthreads = 1\nlog_every = 100\nvalidate_every = 1000\n")
    cats = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cats"]
    small = [f"--set={part}" for part in ("model.d_model=32", "model.ffn=32", "tokenizer.vocab_size=60")]
    command = [*cats, "train", "--data", str(folder / "toy"), "--config", "config.toml", "--steps", "300", *small]
    options: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}}
    run = tmp_path / "runs" / "toy-cats-seed1"
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    deadline = time.monotonic() + 300
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
            assert begun.poll() is None and time.monotonic() < deadline
            # Polls a file until a deadline: the signal must arrive after training has begun. It decides no result.
            time.sleep(0.1)
        begun.send_signal(signal.SIGINT)
        said = begun.communicate(timeout=120)[1]
    finally:
        stop(begun)
    assert begun.returncode != 0 and said.count("cats: stopped after update 1") == 1, said
    step = checkpoint.load(run / "checkpoints" / "last.pt")["step"]
    assert 100 <= step < 300
    command = [*cats, "train", "--resume", str(run)]
    done = run_command(command, 300, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| xa ") == 1 and [each.name for each in (tmp_path / "runs").iterdir()] == [run.name]
    assert done.stderr.count("update 300 of 300") == 1
