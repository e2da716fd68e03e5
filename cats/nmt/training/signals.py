"""Ctrl-C, SIGTERM and a closed terminal: the current update is finished and saved before training stops."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cats.nmt.training import processes

# torchrun forwards a signal that its processes may also have got from the terminal. A second signal within this many
# seconds is taken for the same one.
FORWARD_SECONDS = 5.0


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C, SIGTERM or SIGHUP has arrived, to be called between two updates.

    SIGHUP, which a closed terminal sends, stays ignored under nohup. A second signal raises KeyboardInterrupt at once.
    (A cluster sends SIGTERM some time before it kills a job.)
    """
    first_at = math.inf

    def handle(_signal: int, _frame: FrameType | None) -> None:
        nonlocal first_at
        if time.monotonic() - first_at > (FORWARD_SECONDS if processes.world_size() > 1 else 0.0):
            raise KeyboardInterrupt
        first_at = min(first_at, time.monotonic())

    before = {}
    try:
        for which in _stopping():
            before[which] = signal.signal(which, handle)
    except ValueError:  # only the main thread may set handlers; in another thread, the caller keeps its own
        yield lambda: False
        return
    try:
        yield lambda: first_at < math.inf
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _stopping() -> list[signal.Signals]:
    """The signals that stop training."""
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # Windows has none
        found.append(signal.SIGHUP)
    return found
