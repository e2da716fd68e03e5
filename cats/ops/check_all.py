"""All self-checks of all usable backends, in child processes: `cats info --check`.

A fault on a GPU makes CUDA unusable in its process, and a fault in compiled code ends the process. So checks run in a
child process. If it ends or its GPU is lost, the other checks go on in a new one.

`main` is the child: it answers every line of JSON with a check by one with the result.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from . import dispatch, self_check
from .interface import Dtypes

# A number for every kernel in C++ and CUDA. Triton compiles kernels for every number of tasks: these are examples.
TASKS = (2, 4, 8, 16, 32, 64, 96, 128)
INTERPRETED_TASKS = (2, 12)  # Triton's interpreter is slow
PATIENCE = 300.0  # seconds for one check: enough to compile a kernel on a busy machine


@dataclasses.dataclass(frozen=True)
class Check:
    """A check, and its result: what is wrong (None: nothing), and how long it took, with compilation.

    unsuited: why the backend cannot be used for the operator on this device. Then nothing was checked.
    """

    backend: str
    device: str
    operator: str
    dtype: str
    tasks: int
    aligned: bool
    reason: str | None = None
    unsuited: str | None = None
    seconds: float = 0.0

    @property
    def dtypes(self) -> Dtypes:
        """As in `self_check.Kernel`."""
        own = getattr(torch, self.dtype)
        moments = torch.float64 if own is torch.float64 else torch.float32
        others = {"gram": (), "combine_adamw_": (own, moments, moments)}
        return (own, *others.get(self.operator, (own,)))


def checks() -> list[Check]:
    """All checks of the backends that can be used here. Does not initialise CUDA."""
    found = []
    for name, reason in dispatch.backends().items():
        if reason is not None or name == "reference":
            continue
        limits = dispatch.load(name).LIMITS
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = ["cpu"] if limits.devices == ("cpu",) else gpus or ["cpu"]
        counts = INTERPRETED_TASKS if name == "triton" and not gpus else TASKS
        for device, operator, dtype, tasks in itertools.product(
            devices, dispatch.OPERATORS, ("float32", "bfloat16", "float16", "float64"), counts
        ):
            check = Check(name, device, operator, dtype, tasks, True)
            rule = limits.dtype_rule(operator, tasks)
            if rule is None or rule(check.dtypes):
                found.append(check)
                if device != "cpu" and dtype != "float16" and tasks in (2, 8, 16):
                    found.append(dataclasses.replace(check, aligned=False))
    return found


def run(pending: Sequence[Check]) -> Iterator[Check]:
    """The checks with their results, in order, from as many child processes as it takes."""
    waiting = list(pending)
    while waiting:
        count = 0
        for done in _child(waiting):
            yield done
            count += 1
        if count == 0:
            return
        del waiting[:count]


def _child(waiting: Sequence[Check]) -> Iterator[Check]:
    """The results of one child process: of all checks, or up to the one that made it unusable."""
    # The child searches modules where this process does, in the same order. `python -m` would begin with the working
    # directory, whose files may have the names of modules.
    code = f"import sys; sys.path[:] = sys.argv[1:]; from {__package__} import check_all; check_all.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a compiler that it has started is killed with it
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        for check in waiting:
            started = time.perf_counter()
            watchdog = threading.Timer(PATIENCE, _kill, (process,))
            watchdog.start()
            try:
                process.stdin.write(json.dumps(dataclasses.asdict(check)) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            finally:
                watchdog.cancel()  # otherwise Python waits for it when it ends
            if not line:
                status = process.wait()
                reader.join()
                yield dataclasses.replace(check, reason=_end(status, errors), seconds=time.perf_counter() - started)
                return
            result = json.loads(line)
            lost = result.pop("lost")
            yield dataclasses.replace(check, **result)
            if lost:
                return
    finally:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[str]) -> None:
    """Kills it and what it has started."""
    # Not poll(): a child that has died by itself may have left something that holds its end of a pipe.
    if process.returncode is None:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _end(status: int, errors: Sequence[str]) -> str:
    """Why a child process has ended."""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return ": ".join([f"the process ended with {how}", *[line.strip() for line in errors if line.strip()][-1:]])


def main() -> None:
    """The child process."""
    output = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not be taken for a result
    for line in sys.stdin:
        check = Check(**json.loads(line))
        device = torch.device(check.device)
        started = time.perf_counter()
        module = dispatch.load(check.backend)
        kernel = self_check.Kernel(check.backend, check.operator, device, check.dtypes, check.aligned, check.tasks)
        unsuited = dispatch.unsuited(module, device, check.operator)
        reason = None if unsuited else self_check.check(module, kernel)
        seconds, lost = time.perf_counter() - started, False
        if reason is not None and device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError:
                lost = True
        result = {"reason": reason, "unsuited": unsuited, "seconds": seconds, "lost": lost}
        print(json.dumps(result), file=output, flush=True)
