"""Runs a baseline in its own process: another Python environment, and no influence on our memory and threads."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.common.measure import Unavailable

from .baselines import Job

WORKER = Path(__file__).with_name("baselines.py")
PATIENCE = 600.0  # seconds that a baseline may take to answer

Answer = dict[str, Any]  # one JSON object; baselines.py says which keys each method returns


class Process:
    """A baseline in its own process, whose methods can be called."""

    def __init__(self, python: Path, baseline: str, job: Job, tensors: Path, log: Path) -> None:
        """Starts the baseline.

        Args:
            python: the interpreter of the baselines' environment.
            baseline: a key of `baselines.BASELINES`.
            job: sizes and settings.
            tensors: a file of torch.save with batches, sources and weights.
            log: the file for what the process prints.

        Raises:
            Unavailable: there is no such interpreter, or it lacks what the baseline needs.
        """
        if not python.exists():
            raise Unavailable(f"no {python}; bench/README.md says how to install the baselines")
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-I", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.facts = self._request({"baseline": baseline, "job": asdict(job), "tensors": str(tensors)})

    def call(self, method: str, **arguments: Any) -> Answer:
        """Calls a method of the baseline, with arguments that JSON can hold.

        Raises:
            Unavailable: the call failed, ended the process or took too long. The process has ended.
        """
        return self._request({"method": method, "arguments": arguments})

    def _request(self, request: dict[str, Any]) -> Answer:
        assert self.process.stdin is not None and self.process.stdout is not None
        started = time.perf_counter()
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer: Answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.close()
            if time.perf_counter() - started >= PATIENCE:
                raise Unavailable(f"no answer for {PATIENCE:g} seconds") from None
            said = self.log.read_text(errors="replace").splitlines()
            raise Unavailable(f"it ended: {said[-1] if said else 'no message'}") from None
        finally:
            timer.cancel()
        if "error" in answer:
            self.close()
            raise Unavailable(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def processes() -> Iterator[Callable[..., Process]]:
    """A function that starts baselines. All processes end with the with block."""
    started: list[Process] = []

    def start(*arguments: Any) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.close()
