"""A run that is killed anywhere, runs out of disk or finds its checkpoint damaged ends as if nothing had happened."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.config.toml import read_config
from cats.nmt.data.corpus import Corpus, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint
from cats.nmt.training.metrics import Metrics
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, metrics, settings, split


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "toy"
    tasks = [
        Task("xa", "en", "xa", split(60, 1, False), split(10, 2, False), split(5, 3, False)),
        Task("xb", "en", "xb", split(20, 4, True), split(10, 5, True), split(5, 6, True)),
    ]
    write_corpus(Corpus("toy", tasks), folder)
    return folder


def short(corpus: Path, *more: str) -> Any:
    """60 updates, which pass over the rare task many times; dropout, checkpoints at odd places, kept models."""
    usual = ["train.steps=60", "train.validate_every=20", "train.save_every=7", "train.keep=2", "model.dropout=0.2"]
    return settings(corpus, *usual, "sampling.batch_tokens=60", *more)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(short(corpus), run, quiet=True)
    return run


def assert_same_runs(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    assert_same(final_state(one), final_state(other))
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert sorted(path.name for path in (other / "checkpoints").iterdir()) == names
    for name in set(names) - {"previous.pt"}:  # the one before the newest: it depends on where the run was stopped
        left, right = (checkpoint.load(run / "checkpoints" / name) for run in (one, other))
        assert_same(left["model"], right["model"], name)
    assert not list(other.rglob(".*.tmp"))


class Torn:
    """A file of which half a write is in the file when its process is killed."""

    def __init__(self, file: Any, tick: Callable[[], None]) -> None:
        self.file, self.tick, self.flush = file, tick, file.flush

    def write(self, data: Any) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.tick()
        self.file.write(data[len(data) // 2 :])


def attempt(corpus: Path, run: Path, kind: str, count: int) -> None:
    """Trains as far as it gets: this process is killed before it does something of a kind for the count-th time."""
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
    else:  # killed before there was anything to go on with
        shutil.rmtree(run, ignore_errors=True)
        train(short(corpus), run, quiet=True)


# What a process is killed at, and at which time of its doing that at the latest.
MOMENTS = {"update": 9, "write": 400, "line": 2, "fsync": 4, "replace": 6, "link": 3, "unlink": 4}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_twenty_kills_change_nothing(
    corpus: Path, whole: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no processes that start in no time")
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
    assert capsys.readouterr().err == f"cats: {last} is {wrong}; going on from the one before it, of update 56\n"
    assert_same_runs(whole, run)
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    assert capsys.readouterr().err == ""


def break_file(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()  # not written over: it may have another name
    content[len(content) // 2] ^= 4
    if damage != "missing":
        path.write_bytes({"cut short": content[: len(content) // 3], "empty": b""}.get(damage, content))


def test_nothing_left_to_go_on_with(corpus: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("last.pt", "previous.pt"):
        break_file(run / "checkpoints" / name, "a bit in the middle")
    with pytest.raises(UserError, match=r"last\.pt is damaged, .*, and so is previous\.pt; train again"):
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)


@pytest.mark.parametrize("room", [0, 20_000, 150_000, 250_000])
def test_a_full_disk_loses_nothing(
    corpus: Path, whole: Path, tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every checkpoint after update 30 so many bytes find room."""
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

    monkeypatch.setattr(torch, "save", lambda state, file: save(state, Full(file) if state["step"] > 30 else file))
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


# ---- patience, kept models, a fresh start


def test_patience_survives_a_resume(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The learning rate is so high that training soon gets no further."""
    config = short(corpus, "train.lr=0.2", "train.validate_every=4", "train.patience=3", "train.steps=400")
    train(config, tmp_path / "whole")
    lines = [line for line in metrics(tmp_path / "whole") if "valid" in line]
    assert [line["best"] for line in lines[-3:]] == [False] * 3 and lines[-4]["best"]
    stop = lines[-1]["step"]
    assert stop < 400
    assert f"stopped after update {stop}: no better in 3 validations\n" in capsys.readouterr().err

    for kill in (stop - 1, stop - 6):  # between the validations that are counted
        run = tmp_path / f"parts-{kill}"
        with interrupted(kill):
            train(config, run, quiet=True)
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)
        assert_same_runs(tmp_path / "whole", run)
    train(config, tmp_path / "whole", resume=True, quiet=True)  # what has stopped stays so
    assert final_state(tmp_path / "whole")["step"] == stop


def test_patience_is_for_what_all_languages_are_trained_on(corpus: Path, tmp_path: Path) -> None:
    """Their mean gets worse while some of them are trained alone."""
    more = ["train.lr=0.2", "train.validate_every=4", "train.patience=3", "train.steps=400"]
    train(short(corpus, *more, "train.pretrain=xa", "train.pretrain_steps=200"), tmp_path / "run", quiet=True)
    assert 212 <= final_state(tmp_path / "run")["step"] < 400


def test_patience_needs_validation_pairs(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "toy")
    for path in (tmp_path / "toy").glob("valid.*"):
        path.unlink()
    with pytest.raises(UserError, match=r"train\.patience needs validation pairs"):
        train(short(tmp_path / "toy", "train.patience=1"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_newest_validated_models_are_kept(whole: Path) -> None:
    folder = whole / "checkpoints"
    assert [path.name for path in RunDirectory(whole).kept_checkpoints()] == ["step-40.pt", "step-60.pt"]
    assert_same(checkpoint.load(folder / "step-60.pt")["model"], checkpoint.load(folder / "last.pt")["model"])


@pytest.mark.parametrize("way", [["train.pretrain=xa"], ["train.restart=true"]])
def test_a_fresh_start_is_exact_and_forgets_the_optimizer(corpus: Path, tmp_path: Path, way: list[str]) -> None:
    config = short(corpus, "train.pretrain_steps=21", *way)
    train(config, tmp_path / "whole", quiet=True)
    for kill in (21, 22):
        run = tmp_path / f"parts-{kill}"
        with interrupted(kill):
            train(config, run, quiet=True)
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)
        assert_same_runs(tmp_path / "whole", run)
    seen = {line["step"]: set(line["losses"]) for line in metrics(tmp_path / "whole") if "losses" in line}
    alone = {"xa"} if config.train.pretrain else {"xa", "xb"}
    assert seen == {10: alone, 20: alone} | {step: {"xa", "xb"} for step in (30, 40, 50, 60)}
    rates = {line["step"]: line["lr"] for line in metrics(tmp_path / "whole") if "lr" in line}
    assert rates[30] == pytest.approx(config.train.lr * 9 / 10)  # the ninth update of a warm-up of ten
    state = final_state(tmp_path / "whole")["optimizer"]
    assert {int(moments["step"]) for moments in state["state"].values()} == {60 - 21}
    assert state["multitask"]["counts"]["step"] == 60 - 21


def test_the_restart_differs_from_pretraining_by_its_first_updates_alone(corpus: Path, tmp_path: Path) -> None:
    """Pre-training on all tasks is the restart."""
    for name, way in (("all", "train.pretrain=xb,xa"), ("restart", "train.restart=true")):
        train(short(corpus, "train.pretrain_steps=21", way), tmp_path / name, quiet=True)
    assert_same_runs(tmp_path / "all", tmp_path / "restart")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.pretrain=xa"], r"train\.pretrain needs train\.pretrain_steps between 1 and 59, not 0"),
        (
            ["train.restart=true", "train.pretrain_steps=60"],
            r"train\.restart needs train\.pretrain_steps between 1 and 59",
        ),
        (["train.pretrain_steps=5"], r"train\.pretrain_steps has no effect without train\.pretrain or train\.restart"),
        (["train.pretrain=xa", "train.restart=true", "train.pretrain_steps=5"], r"has that reset anyway"),
        (["train.pretrain=xz", "train.pretrain_steps=5"], r"train\.pretrain: unknown task xz; known: xa, xb"),
    ],
)
def test_fresh_starts_that_make_no_sense(corpus: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(short(corpus, *more), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@contextmanager
def interrupted(step: int) -> Iterator[None]:
    """The training in it is told to stop in the middle of an update, as clusters do."""
    update = Trainer.update

    def stopping(trainer: Trainer) -> None:
        if trainer.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        update(trainer)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "update", stopping)
        yield
