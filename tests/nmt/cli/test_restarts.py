"""`cats train` under torchrun, which starts the processes again when one of them dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from torch import distributed as dist

from cats.nmt.cli import train
from cats.nmt.cli.main import main
from cats.nmt.training.trainer import Trainer
from tests.nmt.cli.common import SET, write_toy
from tests.nmt.common import assert_same_runs
from tests.processes import run_command

MORE = [*SET, "--set", "train.save_every=4", "--set", "train.log_every=3", "--set", "model.dropout=0.1"]

# What torchrun starts here: `cats`, with rank 1 killed in update 1, before any checkpoint of the training, and, after
# the first restart, in update 15. It dies in backward(), where the other process waits for it in an all-reduce.
KILLED = """
import os, signal, sys
import cats
from cats.nmt.cli.main import main
from cats.nmt.training.trainer import Trainer

update, kill_at = Trainer.update, {"0": 0, "1": 14}.get(os.environ["TORCHELASTIC_RESTART_COUNT"])

def killed(trainer):
    if trainer.step == kill_at and os.environ["RANK"] == "1":
        cats.MultiTask.backward = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    update(trainer)

Trainer.update = killed
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_killed_processes_end_as_if_nothing_had_happened(tmp_path: Path, root: Path) -> None:
    write_toy(tmp_path / "toy")
    (tmp_path / "killed.py").write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def start(out: str, *program: str) -> str:
        command = [*torchrun, *program, "train", "--data", "toy", "--out", out, *MORE]
        done = run_command(command, 300, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    start("whole", "-m", "cats")
    said = start("parts", "--max-restarts", "2", "killed.py")  # no restart may be lost in connecting
    assert said.count("cats: started again by torchrun; continuing parts") == 2
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def command(folder: Path, *more: str) -> list[str]:
    return ["train", "--data", str(folder / "toy"), "--quiet", *MORE, *more]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus, as the current folder of a process of the torchrun job "a"."""
    write_toy(tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setattr(train, "score", lambda *_, **__: None)  # not needed here
    return tmp_path


@pytest.mark.parametrize("named", [["--out", "run"], []])
def test_the_same_job_continues_its_run(folder: Path, monkeypatch: pytest.MonkeyPatch, named: list[str]) -> None:
    assert main(command(folder, "--out", "whole")) == 0
    run = folder / (named[-1] if named else "runs/toy-cats-seed1")
    update = Trainer.update

    def killed(trainer: Trainer) -> None:
        if trainer.step == 14:
            raise RuntimeError("killed")
        update(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(command(folder, *named))
    assert main(command(folder, *named)) == 0
    assert_same_runs(folder / "whole", run)
    assert len(list(run.parent.glob("*seed1*"))) == (0 if named else 1)


def test_a_directory_that_was_not_finished_is_made_again(folder: Path) -> None:
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "torchrun-id").write_text("a")
    for name in "tokenizer.model", f".{'0' * 16}.tmp", "checkpoints/last.pt", f"checkpoints/.{'1' * 16}.tmp":
        (folder / "run" / name).write_text("half")
    assert main(command(folder, "--out", "run")) == 0
    assert main(command(folder, "--out", "whole")) == 0
    assert_same_runs(folder / "whole", folder / "run")


@pytest.mark.parametrize(("job", "more"), [("b", []), ("none", []), ("", []), ("a\udcff", []), ("a", ["--seed", "2"])])
def test_runs_of_other_jobs_are_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], job: str, more: list[str]
) -> None:
    """Also those of a job with the same id and other settings: users may give several jobs the same id."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none" if job == "none" else "a")
    assert main(command(folder, "--out", "run", "--steps", "2")) == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    assert "run exists already; choose another --out" in refused(
        *command(folder, "--out", "run", "--steps", "2", *more)
    )
