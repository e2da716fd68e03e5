"""A run that was killed, ran out of disk or has a damaged checkpoint resumes to the same result, bit for bit."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.config.toml import read_config
from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint
from cats.nmt.training.metrics import Metrics
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, assert_same_runs, final_state, metrics, short, write_short_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("resume") / "toy")


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(short(corpus), run, quiet=True)
    return run


class Torn:
    """A file whose process may be killed in the middle of a write."""

    def __init__(self, file: Any, tick: Callable[[], None]) -> None:
        self.file, self.tick, self.flush = file, tick, file.flush

    def write(self, data: Any) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.tick()
        self.file.write(data[len(data) // 2 :])


def attempt(corpus: Path, run: Path, kind: str, count: int) -> None:
    """Trains, or resumes, in a process that is killed just before the count-th call of a kind; see MOMENTS."""
    left = count

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(place: Any, name: str) -> None:
        call = getattr(place, name)

        def ticked(*args: Any, **kwargs: Any) -> Any:
            tick()
            return call(*args, **kwargs)

        setattr(place, name, ticked)

    if kind == "write":
        save = torch.save
        torch.save = lambda state, file: save(state, Torn(file, tick))
    else:
        places = {"update": Trainer, "line": Metrics, "unlink": Path}
        ticking(places.get(kind, os), {"line": "write"}.get(kind, kind))
    torch.set_num_threads(1)
    if (run / "config.toml").exists():
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    else:  # it was killed before there was anything to resume
        shutil.rmtree(run, ignore_errors=True)
        train(short(corpus), run, quiet=True)


# The kinds of calls at which a process is killed, and the largest count of each.
MOMENTS = {"update": 9, "write": 400, "line": 2, "fsync": 4, "replace": 6, "link": 3, "unlink": 4}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_twenty_kills_change_nothing(
    corpus: Path, whole: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that start fast")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["cats.nmt.training.trainer", "torch._dynamo", "sentencepiece", "tqdm"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chooser = random.Random(seed)
    run = tmp_path / "run"
    reached = []
    for _ in range(20):
        kind = chooser.choice(list(MOMENTS))
        process = processes.Process(
            target=attempt, args=(corpus, run, kind, chooser.randint(1, MOMENTS[kind])), daemon=True
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"{process.exitcode} after {reached}: choose smaller MOMENTS"
        if (run / "config.toml").exists():
            reached.append(
                checkpoint.newest(*(run / "checkpoints" / f"{n}.pt" for n in ("last", "previous")))[0]["step"]
            )
    assert reached == sorted(reached) and len(set(reached)) > 3, reached
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    assert_same_runs(whole, run)


@pytest.mark.parametrize("damage", ["cut short", "a bit in the middle", "missing", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    corpus: Path, whole: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    last = run / "checkpoints" / "last.pt"
    break_file(last, damage)
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    wrong = "missing" if damage == "missing" else "damaged, not a checkpoint, or one of an older version"
    assert capsys.readouterr().err == f"cats: {last} is {wrong}; resuming from the one before it, of update 56\n"
    assert_same_runs(whole, run)
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    assert capsys.readouterr().err == ""


def break_file(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()  # not overwritten: the file may have a second name (a hard link)
    content[len(content) // 2] ^= 4
    if damage != "missing":
        path.write_bytes({"cut short": content[: len(content) // 3], "empty": b""}.get(damage, content))


def test_two_damaged_checkpoints_are_an_error(corpus: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("last.pt", "previous.pt"):
        break_file(run / "checkpoints" / name, "a bit in the middle")
    with pytest.raises(UserError, match=r"last\.pt is damaged, .*, and previous\.pt is damaged; train again"):
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)


@pytest.mark.parametrize("room", [0, 20_000, 150_000, 250_000])
def test_a_full_disk_loses_nothing(
    corpus: Path, whole: Path, tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for only so many bytes of each checkpoint after update 30."""
    run = tmp_path / "run"
    save = torch.save

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left, self.flush = file, room, file.flush

        def write(self, data: Any) -> None:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(data)

    def saved(state: Any, file: Any) -> None:  # the optimizer's state_dict calls torch.save too, without a step
        save(state, Full(file) if state.get("step", 0) > 30 else file)

    monkeypatch.setattr(torch, "save", saved)
    with pytest.raises(UserError, match=r"(last|best|step-40)\.pt: the disk is full; free some space") as error:
        train(short(corpus), run, quiet=True)
    assert "\n" not in str(error.value)
    assert not list(run.rglob(".*.tmp"))
    assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == 28
    monkeypatch.undo()
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    assert_same_runs(whole, run)


@pytest.mark.parametrize("where", ["metrics.jsonl", "last.pt"])
def test_a_read_only_run_is_named(
    corpus: Path, whole: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == where:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        replace(source, target)

    state = checkpoint.load(run / "checkpoints" / "previous.pt")
    checkpoint.save(run / "checkpoints" / "last.pt", state)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=rf"{where}: cannot be written \(Read-only file system\)"):
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)


def test_what_a_killed_write_left_is_removed(corpus: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in (run, run / "checkpoints"):
        (folder / ".0123456789abcdef.tmp").write_bytes(b"half")
        (folder / ".mine.tmp").write_bytes(b"the user's")
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    assert [path.name for path in run.rglob(".*")] == [".mine.tmp", ".mine.tmp"]


def test_configurations_of_other_versions(corpus: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    text = (run / "config.toml").read_text(encoding="utf-8")
    older = text.replace("patience = 0\n", "").replace("pretrain_steps = 0\n", "")
    (run / "config.toml").write_text(older, encoding="utf-8")
    assert older != text and read_config(run / "config.toml") == short(corpus)
    (run / "config.toml").write_text(text.replace("patience = 0", "patients = 0"), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"config\.toml: unknown setting 'train\.patients' \(did you mean train\.patience"
    ):
        read_config(run / "config.toml")


def test_checkpoints_of_versions_that_did_not_count_sentence_pairs(
    corpus: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of metrics after such a checkpoint does not know their number; all else is the same."""
    update = Trainer.update
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer, "update", lambda trainer: update(trainer) if trainer.step < 37 else 1 / 0)
        train(short(corpus), tmp_path / "run", quiet=True)
    last = tmp_path / "run" / "checkpoints" / "last.pt"  # of update 35
    state = checkpoint.load(last)
    state["since_log"] = [{task: sums[:2] for task, sums in part.items()} for part in state["since_log"]]
    checkpoint.save(last, state)
    train(short(corpus), tmp_path / "run", resume=True, quiet=True)
    assert_same(final_state(tmp_path / "run"), final_state(whole))
    expected = metrics(whole)
    unknown = next(line for line in expected if "examples" in line and line["step"] == 40)
    assert min(unknown["examples"].values()) > 0
    unknown["examples"] = dict.fromkeys(unknown["examples"])
    assert metrics(tmp_path / "run") == expected


def test_the_newest_validated_models_are_kept(whole: Path) -> None:
    folder = whole / "checkpoints"
    assert [path.name for path in RunDirectory(whole).kept_checkpoints()] == ["step-40.pt", "step-60.pt"]
    assert_same(checkpoint.load(folder / "step-60.pt")["model"], checkpoint.load(folder / "last.pt")["model"])
