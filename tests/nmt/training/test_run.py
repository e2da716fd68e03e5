"""The run directory: its files, its lock, and what happens to files that do not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import read_config
from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import train
from tests.nmt.common import metrics, settings


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
    with pytest.raises(UserError, match=r"last\.pt does not match .*config\.toml") as error:
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


def test_a_changed_corpus_is_noticed(corpus, tmp_path):
    train(settings(corpus), tmp_path / "run", quiet=True)
    path = corpus / "train.en-xa.xa"
    path.write_text(path.read_text(encoding="utf-8").replace("alpha", "omega"), encoding="utf-8")
    with pytest.raises(UserError, match="not the one this run was started on"):
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)
