"""Ctrl-C, and a kill in the middle of training: the resumed run equals one without interruption."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import read_config
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, metrics, settings


@pytest.mark.parametrize("stop", [4, 13, 20, 30])
def test_an_interrupted_run_goes_on_bit_for_bit(corpus, tmp_path, stop, monkeypatch, capsys):
    config = settings(corpus)
    train(config, tmp_path / "whole", quiet=True)
    update = Trainer.update

    def interrupted(trainer: Trainer) -> None:
        if trainer.step == stop - 1:  # in the middle of update `stop`
            os.kill(os.getpid(), signal.SIGINT)
        update(trainer)

    monkeypatch.setattr(Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", quiet=True)
    assert f"--resume {tmp_path / 'parts'}" in capsys.readouterr().err
    assert final_state(tmp_path / "parts")["step"] == stop
    monkeypatch.setattr(Trainer, "update", update)
    train(read_config(tmp_path / "parts" / "config.toml"), tmp_path / "parts", resume=True, quiet=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_lines_after_the_checkpoint_are_written_again(corpus, tmp_path, monkeypatch):
    config = settings(corpus, "train.log_every=5")
    train(config, tmp_path / "whole", quiet=True)
    update = Trainer.update

    def killed(trainer: Trainer) -> None:
        if trainer.step == 26:  # the last checkpoint is of update 20; lines of metrics follow it
            raise RuntimeError("killed")
        update(trainer)

    monkeypatch.setattr(Trainer, "update", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "parts", quiet=True)
    monkeypatch.undo()
    with (tmp_path / "parts" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 26, "lo')
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert [m for m in metrics(tmp_path / "parts") if m["step"] > 20] == [
        m for m in metrics(tmp_path / "whole") if m["step"] > 20
    ]
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_a_run_killed_before_its_first_checkpoint_goes_on(corpus, tmp_path, monkeypatch):
    config = settings(corpus)
    train(config, tmp_path / "whole", quiet=True)

    def killed(trainer: Trainer) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "run", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "parts", quiet=True)
    monkeypatch.undo()
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
