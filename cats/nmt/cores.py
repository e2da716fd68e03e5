"""The CPU cores that a process may use, and how several processes share them."""

from __future__ import annotations

import os

from cats.nmt.errors import UserError


def available_cores() -> int:
    """The number of cores that this process may use: those of its CPU affinity, as `taskset` sets it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_process(processes: int) -> int:
    """The number of threads for each of several processes: OMP_NUM_THREADS, or an equal share of the cores.

    Raises:
        UserError: OMP_NUM_THREADS is set to something else than a number of threads.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not given:
        return max(1, available_cores() // processes)
    first = given.partition(",")[0].strip()  # OpenMP allows a list: one number for each level of nesting
    if not (first.isascii() and first.isdecimal() and int(first[:9]) >= 1):
        raise UserError(f"OMP_NUM_THREADS={given}: must be a whole number of at least 1; change it, or unset it")
    return int(first[:9])
