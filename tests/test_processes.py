"""Processes that tests start end."""

from __future__ import annotations

import time

import pytest
from torch.multiprocessing import ProcessExitedException

from tests import processes


def stay(rank: int, stays: int) -> None:
    if rank == stays:
        time.sleep(1000)  # stands for a process that hangs; the watch ends it after 3 s, or the test takes too long


@pytest.mark.parametrize("stays", [0, 1])
def test_a_process_that_does_not_end_fails_the_test(
    stays: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "LONGEST", 3.0)
    with pytest.raises(ProcessExitedException):
        processes.spawn(stay, (stays,), 2)
    assert "in stay" in capfd.readouterr().err


def test_processes_get_their_rank_and_arguments(tmp_path) -> None:
    processes.spawn(write, (tmp_path,), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def write(rank: int, folder) -> None:
    (folder / str(rank)).touch()
