"""Starts a function in several processes. If they wait for each other forever, the test fails."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
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
