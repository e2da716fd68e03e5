"""Progress: few lines in a log file, a bar on a terminal, nothing if quiet."""

from __future__ import annotations

import errno
import io
import sys

import pytest

pytest.importorskip("tqdm")

from cats.nmt.training import progress
from cats.nmt.training.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (61, "2 min"), (3600, "1 h 00 min"), (36_061, "10 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_per_validation_and_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with Progress(0, 2000, quiet=False) as shown:
        for step in range(10, 201, 10):
            clock += 7.0
            shown.say(step, clock, f"loss {step}", now=step == 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "update 50 of 2,000: loss 50, 23 min left",
        "update 100 of 2,000: loss 100, 23 min left",
        "update 150 of 2,000: loss 150, 22 min left",
        "update 200 of 2,000: loss 200, 21 min left",
    ]


def test_a_bar_on_a_terminal_and_nothing_if_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for quiet in (False, True):
        with Progress(0, 10, quiet=quiet) as shown:
            shown.update()
            shown.say(1, 1.0, "loss 7.500", now=True)
        err = capsys.readouterr().err
        assert ("loss 7.500" in err and "\r" in err and "update" not in err) if not quiet else err == ""


def test_a_log_on_a_full_disk_does_not_stop_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    with Progress(0, 10, quiet=False) as shown:
        shown.update()
        shown.say(1, 1.0, "loss 7.500", now=True)
