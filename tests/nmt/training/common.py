"""What tests of training share. It imports the trainer, so import it after checking that sentencepiece is there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cats.nmt.errors import Stopped
from cats.nmt.training.trainer import Trainer


@contextmanager
def interrupted(step: int, by: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """Sends a signal in the middle of update `step` of the training in the block; clusters send SIGTERM."""
    update = Trainer.update

    def stopping(trainer: Trainer) -> None:
        if trainer.step == step - 1:
            os.kill(os.getpid(), by)
        update(trainer)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "update", stopping)
        yield
