"""Measures the host's part of a call on a GPU, on any machine: the CUDA backend with launches that do nothing.

What remains is everything that Python and C++ do between the user's call and the launches: reading and checking the
gradients, finding their addresses, looking up the chunks, allocating results. What a GPU adds is the time of the
launches themselves, a few microseconds each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any
from unittest import mock

import torch

import cats
from bench.common.targets import TargetResult, judge
from cats import ops
from cats.ops import checks, device_table, dispatch, nvidia, self_check

from .cases import transformer_base
from .records import HostCall

TASKS = (2, 8, 32, 92)
SETS = 3  # sets of gradients that take turns, so that all addresses are new at every call
TARGETS = {8: 0.3, 92: 1.5}  # ms for a call of combine_dots on a Transformer-base's gradients, by number of tasks


class _NoLaunches(types.ModuleType):
    """Stands for cats._native: launches do nothing."""

    cuda = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("cuda_"):
            return lambda *arguments: 13000  # cuda_toolkit: any version
        raise AttributeError(name)


@contextlib.contextmanager
def cuda_without_launches() -> Iterator[None]:
    """Within this context, the backend "cuda" takes tensors on the CPU and does everything but launch kernels.

    It is the default, and counts as checked: its results are never written.
    """
    name = "cats.ops.backends.cuda_without_launches"
    found = importlib.util.find_spec("cats.ops.backends.cuda")
    assert found is not None and found.origin is not None
    spec = importlib.util.spec_from_file_location(name, found.origin)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    nothing = _NoLaunches("nothing")
    with (
        mock.patch.dict(sys.modules, {"cats._native": nothing}),
        mock.patch.object(cats, "_native", nothing, create=True),
        mock.patch.object(nvidia, "why_no_device", lambda: None),
        mock.patch.object(nvidia, "why_too_old", lambda *arguments: None),
    ):
        spec.loader.exec_module(module)
    module.LIMITS = replace(module.LIMITS, devices=("cpu",))
    stream = types.SimpleNamespace(cuda_stream=0)
    with (
        mock.patch.dict(sys.modules, {name: module}),
        mock.patch.dict(dispatch.BACKENDS, {"cuda": name}),
        mock.patch.dict(dispatch.DEFAULTS, {"cpu": dispatch.DEFAULTS["cuda"]}),
        mock.patch.dict(dispatch._modules),
        mock.patch.dict(os.environ, {"CATS_BACKEND": ""}),
        mock.patch.dict(self_check._found),
        mock.patch.object(self_check, "check", lambda *arguments: None),
        mock.patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "current_stream", lambda device: stream),
    ):
        yield


def calls(rounds: int = 40, tasks: Sequence[int] = TASKS, shapes: Sequence[Sequence[int]] = ()) -> list[HostCall]:
    """Times of combine_dots on the gradients of a Transformer-base, whose addresses are new at every call.

    rounds: calls per number of tasks, which take turns. shapes: of other parameters instead.
    """
    shapes = shapes or transformer_base()
    with cuda_without_launches():
        cases = [_Case(count, shapes) for count in tasks]
        for _ in range(rounds):
            for case in cases:
                case.measure()
    return [case.summary() for case in cases]


def _gradients(tasks: int, shapes: Sequence[torch.Size]) -> list[list[list[torch.Tensor]]]:
    """SETS of gradients for the tasks, all at addresses of their own.

    As on a GPU, only the objects that describe a tensor are in the memory that the host works with, one after the
    other. The numbers are in a block of memory that is never touched, where the gradients of a parameter overlap.
    """
    step = 64  # bytes between the first elements of two gradients of a parameter
    begins = [0, *accumulate(4 * shape.numel() + step * tasks * SETS for shape in shapes)]
    memory = mmap.mmap(-1, begins[-1] + step)

    def gradient(i: int, place: int) -> torch.Tensor:
        begin = (begins[i] + step - 1) // step * step
        flat = torch.frombuffer(memory, dtype=torch.float32, count=shapes[i].numel(), offset=begin + step * place)
        return flat.view(shapes[i])

    return [[[gradient(i, s * tasks + n) for i in range(len(shapes))] for n in range(tasks)] for s in range(SETS)]


class _Case:
    """combine_dots for one number of tasks, and its times."""

    def __init__(self, tasks: int, shapes: Sequence[Sequence[int]]) -> None:
        self.sets = _gradients(tasks, [torch.Size(s) for s in shapes])
        self.out = [torch.empty(list(s)) for s in shapes]
        self.weights = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
        device_table._recent.clear()
        self.first = self._timed(self._call, self.sets[0])[0]
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.reading: list[float] = []
        self.turn = 0

    def measure(self) -> None:
        cpu, wall = self._timed(self._call, self._next())
        self.cpu.append(cpu)
        self.wall.append(wall)
        self.reading.append(self._timed(checks.Tasks, self._next())[0])

    def _next(self) -> Any:
        self.turn += 1
        return self.sets[self.turn % SETS]

    def _call(self, grads: Any) -> Any:
        return ops.combine_dots(grads, self.weights, out=self.out)

    @staticmethod
    def _timed(function: Callable[[Any], object], grads: Any) -> tuple[float, float]:
        """Milliseconds of this thread on a core, and of wall-clock time."""
        cpu, wall = time.thread_time(), time.perf_counter()
        function(grads)
        return (time.thread_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3

    def summary(self) -> HostCall:
        return HostCall(
            tasks=len(self.weights),
            tensors=len(self.out),
            chunks=next(reversed(device_table._recent.values())).chunk_count,
            first_ms=self.first,
            cpu_ms=statistics.median(self.cpu),
            wall_ms=statistics.median(self.wall),
            reading_ms=statistics.median(self.reading),
        )


def evaluate(records: Sequence[HostCall]) -> list[TargetResult]:
    """The targets for the numbers of tasks that were measured."""
    return [
        judge("combine_dots at new addresses, host, ms", "cuda", r.cpu_ms, TARGETS[r.tasks], True, f"K={r.tasks}")
        for r in records
        if r.tasks in TARGETS
    ]
