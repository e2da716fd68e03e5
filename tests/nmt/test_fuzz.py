"""Damaged inputs: thousands of small changes of a configuration, a run, an exported model and a prepared folder.

Every command must end with status 0 or 2, without a traceback and soon. If it ends with 0, its result is that of the
unchanged files, or it says on standard error what was changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.config.schema import FIELDS, Config
from cats.nmt.config.toml import read_config, to_toml
from cats.nmt.model import decode
from cats.nmt.training import checkpoint, export_file
from cats.nmt.training.origin import settings_of
from cats.nmt.training.run import RunDirectory
from tests.nmt.cli.common import SET, write_toy

SECONDS = 60  # a command on these small inputs takes less than one, but the machine may be busy
MEMORY = 24 << 30  # bytes of addresses; torch reserves some of them
VALUES = (
    *("0", "-1", "1", "2", "3", "7", "1000", "65536", "1000000", "2147483648", "4294967295", "10000000000000000000000"),
    *("0x" + "f" * 5000, "9" * 5000, "1e-320", "1e-30", "0.5", "1.5", "1e30", "1e308", "inf", "-inf", "nan", "-0.0"),
    *(
        '""',
        '"x"',
        '"a\\u0000b"',
        '"' + "x" * 5000 + '"',
        "true",
        "false",
        "[]",
        "[1]",
        "[0.9, 0.98]",
        "[inf]",
        '["az"]',
    ),
    *(
        '["az", "az"]',
        "[[]]",
        "{}",
        "{a = 1}",
        "[1e308, 1e308]",
        "[" * 3000,
        "1979-05-27",
        "'''\n'''",
        "\x00",
        '"tokens"',
    ),
)


class TooSlow(Exception):
    """A command took longer than SECONDS."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Limits of time and memory for a command."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def called(*arguments: Any) -> tuple[int, str, str]:
    """The exit status, standard output and standard error of a command. It must end as every command does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limits():
        status = main([str(argument) for argument in arguments])
    said = err.getvalue()
    assert status in (0, 2) and "Traceback" not in said, said
    if status:
        last = said.splitlines()[-1]
        assert last.startswith("cats: ") and len(last) < 2000, said[:3000]
    return status, out.getvalue(), said


def translated(path: Path, *_: Any, **__: Any) -> None:
    """In place of the scores and pictures at the end of a training, which take much longer."""
    trained = RunDirectory(path).load_model()
    lines = ["alpha bravo", "", "carol " * 40]
    assert len(decode.translate(trained.model, trained.tokenizer, lines, "en", "az", trained.config.decode)) == 3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cats.nmt.cli.train.score", translated)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy/: a corpus, prepared/, run/: trained on toy/, model/: exported."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_toy(folder / "toy")
    few = ["--quiet", *SET, "--set", "train.steps=2", "--set", "train.validate_every=1", "--set", "train.log_every=1"]
    assert main(["train", "--data", str(folder / "toy"), "--out", str(folder / "run"), *few]) == 0
    assert main(["export", str(folder / "run"), str(folder / "model")]) == 0
    prepare = ["data", "prepare", str(folder / "toy"), "--out", str(folder / "prepared"), "--processes", "1"]
    assert main([*prepare, *SET]) == 0
    return folder


def changed(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """The content with one small change."""
    at, size = draw.randrange(len(content) + 1), draw.choice((1, 2, 8, 100))
    kind = draw.randrange(9)
    if kind <= 2 and content:
        at = min(at, len(content) - 1)
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    if kind == 3:
        return content[:at]
    if kind == 4:
        return content[: max(0, len(content) - size)] + bytes(min(size, len(content)))
    if kind == 5:
        return content[:at] + draw.randbytes(size) + content[at:]
    if kind == 6:
        return content[:at] + content[at + size :]
    if kind == 7:
        return draw.choice(others)
    return _other_value(content, draw)


def _other_value(content: bytes, draw: random.Random) -> bytes:
    """The content with another value in the place of a number, a word or a string."""
    places = list(re.finditer(rb'-?\b[0-9][0-9.e+-]*\b|"[^"\n]*"|\btrue\b|\bfalse\b|\bnull\b', content))
    if not places:
        return content[::-1]
    place = draw.choice(places)
    return content[: place.start()] + draw.choice(VALUES).encode() + content[place.end() :]


def fuzz(root: Path, names: list[str], count: int, seed: int, result: Callable[[], Any]) -> None:
    """Changes one file at a time.

    Args:
        names: files in the folder `root`.
        result: what the folder is used for; returns the exit status, what came out, and standard error.
    """
    draw = random.Random(seed)
    contents = {name: (root / name).read_bytes() for name in names}
    status, expected, said = result()
    assert status == 0 and not said, said
    for number in range(count):
        name = draw.choice(names)
        new = changed(contents[name], list(contents.values()), draw)
        try:
            (root / name).write_bytes(new)
            if draw.random() < 0.03:
                (root / name).unlink()
            try:
                status, found, said = result()
            except BaseException as error:
                raise AssertionError(
                    f"change {number}, of {name}: {type(error).__name__}: {str(error)[:2000]}"
                ) from error
            where = f"change {number}, of {name}, was accepted without a word"
            assert status == 2 or found == expected or name.rpartition("/")[2] in said, where
        finally:
            (root / name).write_bytes(contents[name])


def model_of(folder: Path) -> Any:
    """What an exported model is. safetensors writes the metadata in any order. The place of the corpus may change: the
    digest tells whether it is the right one. So may the settings of further training and of decoding.
    """
    parameters, origin = export_file.read(folder / "model.safetensors")
    values = {name: tensor.tolist() for name, tensor in parameters.items()}
    config = settings_of(read_config(folder / "config.toml"))
    settings = {name: config[name] for name in config if not origin.is_often_changed(name) and name != "data.path"}
    names = export_file.task_names(folder / "model.safetensors")
    return values, dataclasses.replace(origin, settings=settings), names, (folder / "tokenizer.model").read_bytes()


def some(lean: int, full: int) -> Any:
    """A few changes by default, and many with -m slow."""
    return pytest.mark.parametrize("count", [lean, pytest.param(full, marks=pytest.mark.slow)])


@some(12, 700)
def test_configurations(folder: Path, tmp_path: Path, count: int) -> None:
    """Every setting with other values. Which of them are accepted is tested elsewhere."""
    draw = random.Random(count)
    long = ("data.path", "train.steps", "train.compile")  # with other values, much work is what they ask for
    settings = [name for name in FIELDS if name not in long]
    lines = to_toml(Config())
    for number in range(count):
        name, value = settings[number % len(settings)], draw.choice(VALUES)
        section, key = name.split(".")
        table = f"[{section}]\n{key} = {value}\n"
        text = table if number % 4 else changed(lines.encode(), [b"[", b"x"], draw).decode("latin-1")
        (tmp_path / "config.toml").write_bytes(text.encode("latin-1", "replace"))
        small = [setting for setting in SET if not setting.startswith((f"{name}=", "train.steps="))]
        small = [argument for setting in small if setting != "--set" for argument in ("--set", setting)]
        run = tmp_path / "run"
        files = ["--data", folder / "toy", "--config", tmp_path / "config.toml", "--out", run]
        try:
            called("train", "--quiet", *files, *small, "--steps", "1")
        except BaseException as error:
            raise AssertionError(f"{number}: {text[:300]}: {type(error).__name__}: {str(error)[:2000]}") from error
        shutil.rmtree(run, ignore_errors=True)


@some(25, 600)
def test_prepared_folders(folder: Path, tmp_path: Path, count: int) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(folder / "prepared", prepared)
    names = sorted(str(path.relative_to(prepared)) for path in prepared.rglob("*") if path.is_file())
    run = tmp_path / "run"

    def result() -> tuple[int, Any, str]:
        shutil.rmtree(run, ignore_errors=True)
        few = ["--set", "train.steps=1", "--set", "train.validate_every=1"]
        status, _, said = called("train", "--data", prepared, "--out", run, "--quiet", *SET, *few)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] if not status else []
        state = checkpoint.load(run / "checkpoints" / "best.pt") if not status else {}
        return status, ([line.get("losses", line.get("valid")) for line in lines], state.get("digest")), said

    fuzz(prepared, names, count, 1, result)


@some(25, 600)
def test_runs(folder: Path, tmp_path: Path, count: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    names = ["config.toml", "tokenizer.model", "metrics.jsonl", "checkpoints/best.pt"]

    def result() -> tuple[int, Any, str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        status, _, said = called("export", run, tmp_path / "out")
        return status, None if status else model_of(tmp_path / "out"), said

    fuzz(run, names, count, 2, result)


@some(10, 100)
def test_resumed_runs(folder: Path, tmp_path: Path, count: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    names = ["config.toml", "tokenizer.model", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/previous.pt"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def result() -> tuple[int, Any, str]:
        status, _, said = called("train", "--resume", run, "--quiet")
        state = checkpoint.load(run / "checkpoints" / "last.pt") if not status else {}
        found = state.get("digest")  # the number of updates may be changed
        for path, content in before.items():  # a resumed run writes last.pt and more
            if str(path.relative_to(run)) not in names or path.read_bytes() != content:
                path.write_bytes(content)
        return status, found, said

    fuzz(run, names, count, 3, result)


@some(20, 300)
def test_exported_models(folder: Path, tmp_path: Path, count: int) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)

    def result() -> tuple[int, Any, str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        status, _, said = called("export", model, tmp_path / "out")
        return status, None if status else model_of(tmp_path / "out"), said

    fuzz(model, ["config.toml", "tokenizer.model", "model.safetensors"], count, 4, result)
