"""Starts functions and commands of several processes. If these wait for each other forever, the test fails."""

from __future__ import annotations

import faulthandler
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

LONGEST = 300  # seconds; a quiet machine needs at most 40


def spawn(function: Callable[..., None], args: tuple[Any, ...], count: int) -> None:
    """Calls ``function(rank, *args)`` in ``count`` new processes.

    Raises:
        torch.multiprocessing.ProcessRaisedException: if one of them raised. The others are stopped.
        torch.multiprocessing.ProcessExitedException: if one did not end within LONGEST seconds. The stacks of its
            threads stand in the test's output.
    """
    torch.multiprocessing.spawn(_watched, (function, args, LONGEST), nprocs=count)


def _watched(rank: int, function: Callable[..., None], args: tuple[Any, ...], longest: float) -> None:
    # Not stopped at the end: a process can hang while it ends. This watch needs no GIL, a signal's handler does.
    faulthandler.dump_traceback_later(longest, exit=True)
    function(rank, *args)


def run_command(command: Sequence[str], seconds: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run(command, **options)`` with its output as text, for torchrun.

    After that many seconds it is told to end, so that it ends the processes that it has started. If it were killed at
    once, as subprocess.run() does, they would stay.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        stop(process)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a process that has not ended, and gives it a minute for that."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=60)
        process.kill()
        process.wait(60)
