"""Trains the runs of a comparison, several at a time, each in a process of its own.

A run that fails is reported and stepped over. So are the runs that need it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cats.nmt.config.toml import to_toml
from cats.nmt.errors import Stopped, UserError
from cats.nmt.files import atomic_write
from cats.nmt.scoring.grid.runs import Run, check_resumable, everything
from cats.nmt.screen import doing, tell
from cats.nmt.training.progress import duration
from cats.nmt.training.signals import deferred_interrupts

WAIT = 0.2  # seconds between two looks at the processes
GRACE = 60.0  # seconds that a process gets to end before it is killed


@dataclass(frozen=True)
class Process:
    """A process that trains a run.

    Attributes:
        began: time.monotonic() at its start, seconds.
        errors: what it writes to standard error.
    """

    run: Run
    process: subprocess.Popen[bytes]
    began: float
    errors: IO[bytes]


def execute(runs: Sequence[Run], jobs: int) -> dict[Path, str]:
    """Trains and scores the runs that are not finished, and their trials, `jobs` of them at a time.

    Returns:
        Why each run that failed did so, by its directory. The others are finished.

    Raises:
        UserError: something else than a run failed, such as writing a file. No process is left behind.
        Stopped: after Ctrl-C or SIGTERM, when all processes have saved their checkpoints and ended. A second
            signal ends them at once, and kills one that has not ended after a minute.
    """
    grid = _Grid(everything(runs), jobs)
    try:
        with deferred_interrupts() as interrupted:
            grid.execute(interrupted)
    finally:  # no process must outlive this one, whatever ends it
        for each in grid.working:
            each.process.terminate()
        for each in grid.working:
            try:
                each.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()
    return grid.failed


class _Grid:
    """The state of the execution; `working` always holds the processes that have not ended."""

    def __init__(self, runs: Sequence[Run], jobs: int) -> None:
        self.waiting = [run for run in runs if not run.finished]
        self.working: list[Process] = []
        self.failed: dict[Path, str] = {}
        self.jobs = jobs
        self.count, self.done = len(runs), len(runs) - len(self.waiting)
        self.seconds: dict[tuple[str, bool], list[float]] = {}  # of the runs that ended, by `_kind`

    def execute(self, interrupted: Callable[[], bool]) -> None:
        stopping = False
        while self.waiting or self.working:
            if interrupted() and not stopping:
                stopping = True
                self.waiting.clear()
                what = f"; {len(self.working)} runs save their checkpoints" if self.working else ""
                tell(f"cats: stopped; the same command continues from here{what}")
                for each in self.working:  # each of them saves its checkpoint and ends
                    each.process.terminate()
            while len(self.working) < self.jobs and (run := self.next_ready()) is not None:
                self.begin(run)
            time.sleep(WAIT)
            for each in [each for each in self.working if each.process.poll() is not None]:
                self.working.remove(each)
                self.end(each, quiet=stopping)
        if interrupted():
            raise Stopped

    def next_ready(self) -> Run | None:
        """Takes the first waiting run that can start. Runs that need a failed one fail, too."""
        for run in list(self.waiting):
            broken = next((needed.path for needed in run.needs if needed.path in self.failed), None)
            if broken is not None:
                self.waiting.remove(run)
                self.fail(run, f"not started, because {broken} failed")
            elif all(needed.finished for needed in run.needs):
                self.waiting.remove(run)
                return run
        return None

    def begin(self, run: Run) -> None:
        try:
            run = run.settled()
            check_resumable(run)
        except UserError as error:
            self.fail(run, str(error))
        else:
            doing(f"training {run.path}")
            self.working.append(start(run))

    def end(self, ended: Process, *, quiet: bool) -> None:
        """Reports a process that has ended. quiet: it was interrupted, which is no failure."""
        error, seconds = _error(ended), time.monotonic() - ended.began
        if not ended.run.finished:  # a trial that diverged is finished
            if not quiet:
                self.fail(ended.run, error or "trained, but not scored; is there text to score?")
            return
        self.done += 1
        self.seconds.setdefault(_kind(ended.run), []).append(seconds)
        what = f"{ended.run.path}: {'diverged, ' if error else ''}{duration(seconds)}"
        tell(f"[{self.done}/{self.count}] {what}; {duration(self.left())} left")

    def fail(self, run: Run, error: str) -> None:
        self.done += 1
        self.failed[run.path] = error
        tell(f"[{self.done}/{self.count}] failed: {run.path}: {error}")

    def left(self) -> float:
        """An estimate of the seconds until the end, from the runs that have ended so far."""
        everything = [seconds for found in self.seconds.values() for seconds in found]

        def expected(run: Run) -> float:
            known = self.seconds.get(_kind(run), everything)
            return sum(known) / len(known)

        now = time.monotonic()
        working = sum(max(0.0, expected(each.run) - (now - each.began)) for each in self.working)
        return (working + sum(map(expected, self.waiting))) / self.jobs


def _kind(run: Run) -> tuple[str, bool]:
    """Runs of the same set, and of trials or not, take about the same time."""
    return run.set, run.config.evaluate.search == "none"


def start(run: Run) -> Process:
    """Starts the process that trains and scores a run, from its last checkpoint if there is one."""
    if run.started:
        where = ["--resume", str(run.path)]
    else:
        configuration = run.path.parent / f"{run.path.name}.toml"
        configuration.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(configuration, to_toml(run.config))
        where = ["--config", str(configuration), "--out", str(run.path)]
    threads = run.config.train.threads
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-m", "cats", "train", "--quiet", *where]
    # A file instead of a pipe: nobody reads the output before the end, and a full pipe would stop the process.
    errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by _error
    # In a group of its own, a run gets Ctrl-C once, from this process. A second signal would stop it at once.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, process_group=0)
    return Process(run, process, time.monotonic(), errors)


def _error(ended: Process) -> str:
    """Why a process failed: the signal that ended it, or the last line of its standard error; "" if it did not fail."""
    ended.errors.seek(0)
    text = ended.errors.read().decode(errors="replace").strip()
    ended.errors.close()
    status = ended.process.returncode
    if status == 0:
        return ""
    if status < 0:
        memory = "; was there enough memory?" if status == -signal.SIGKILL else ""
        return f"the process was ended by signal {-status}{memory}"
    return text.splitlines()[-1].removeprefix("cats: ") if text else f"exit {status}"
