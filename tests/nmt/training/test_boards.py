"""Weights & Biases gets the numbers of metrics.jsonl; a resumed training continues its run. The module is a fake."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError
from cats.nmt.training.boards import WeightsAndBiases
from cats.nmt.training.trainer import train
from tests.nmt.common import assert_same, final_state, metrics, short
from tests.nmt.training.common import interrupted

SHORT = ["train.steps=6", "train.validate_every=3", "train.log_every=2"]

DIVERGING = ["train.lr=1e30", "train.warmup=0", "model.dropout=0"]


class Fake(ModuleType):
    """As much of wandb as is used. `refused`: the modes in which init fails."""

    class Error(Exception):
        pass

    def __init__(self, *refused: str | None) -> None:
        super().__init__("wandb")
        self.refused, self.started, self.logged, self.exit_codes = refused, list[Any](), list[Any](), list[int]()

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> Fake:
        self.started.append(arguments)
        if arguments["mode"] in self.refused:
            raise self.Error("No API key configured.\nMore lines")
        return self

    def teardown(self) -> None:
        self.started.append("teardown")

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_resumed_training_continues_its_run(corpus: Path, tmp_path: Path, fake: Fake) -> None:
    config, run = short(corpus, *SHORT, "train.wandb=birds"), tmp_path / "run"
    with interrupted(5):
        train(config, run, quiet=True)
    train(config, run, resume=True, quiet=True)
    first, second = fake.started
    assert first == second and fake.exit_codes == [1, 0]  # stopped, finished
    assert (first["project"], first["name"], first["resume"], first["mode"]) == ("birds", "run", "allow", None)
    assert first["id"] == (run / "wandb-id").read_text() and first["config"]["train.steps"] == 6
    lines = [line for line in metrics(run) if line["step"] > 0]
    assert [step for step, _ in fake.logged] == [line["step"] for line in lines] == [2, 3, 4, 6, 6]
    for (_, numbers), line in zip(fake.logged, lines, strict=True):
        for name, table in (("losses", line.get("losses", {})), ("valid/nll", line.get("valid", {}).get("nll", {}))):
            assert {task: numbers[f"{name}/{task}"] for task in table} == table
    train(short(corpus, *SHORT), tmp_path / "without", quiet=True)
    ours, theirs = final_state(run), final_state(tmp_path / "without")
    assert ours.pop("settings") != theirs.pop("settings")
    assert_same(ours, theirs)
    assert not (tmp_path / "without" / "wandb-id").exists() and len(fake.started) == 2


def test_a_training_that_diverges_does_not_look_finished(corpus: Path, tmp_path: Path, fake: Fake) -> None:
    with pytest.raises(UserError, match="diverged"):
        train(short(corpus, *SHORT, *DIVERGING, "train.wandb=birds"), tmp_path / "run", quiet=True)
    assert fake.exit_codes == [1]


def started(folder: Path, *, quiet: bool = False) -> WeightsAndBiases:
    return WeightsAndBiases("birds", folder, folder / "wandb-id", vars(Config().train), quiet=quiet)


def test_without_a_server_the_numbers_stay_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake(None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    started(tmp_path)
    first, between, second = fake.started
    assert (first["mode"], between, second) == (None, "teardown", {**first, "mode": "offline"})
    expected = f"cats: Weights & Biases: No API key configured.; send the numbers later: wandb sync {tmp_path}/wandb/"
    assert capsys.readouterr().err == f"{expected}offline-run-*\n"
    started(tmp_path, quiet=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "wandb", Fake(None, "offline"))
    with pytest.raises(UserError, match=r"^train\.wandb: No API key configured\.$"):
        started(tmp_path, quiet=True)


@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_board_that_fails_does_not_end_the_training(
    corpus: Path,
    tmp_path: Path,
    fake: Fake,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError("its process was killed\nMore lines")

    monkeypatch.setattr(fake, method, fail)
    train(short(corpus, "train.steps=3", "train.log_every=1", "train.wandb=birds"), tmp_path / "run", quiet=True)
    said = "WeightsAndBiases failed (its process was killed) and gets no more numbers"
    assert capsys.readouterr().err == f"cats: {said}; {tmp_path}/run/metrics.jsonl has them\n"
    assert metrics(tmp_path / "run")[-1]["step"] == 3


def test_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    (tmp_path / "wandb-id").write_text("../other")
    with pytest.raises(UserError, match=r"wandb-id is damaged; remove it"):
        started(tmp_path)
    for module in (None, ModuleType("wandb")):  # nothing, or a folder of this name
        monkeypatch.setitem(sys.modules, "wandb", module)
        with pytest.raises(UserError, match=r"^train\.wandb: .*; install it with: pip install wandb$"):
            train(short(corpus, "train.wandb=birds"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
