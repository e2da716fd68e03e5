"""The peak memory of a step, in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch._dynamo  # AdamW imports it in its first step; this way all children share the import

from bench.common import measure

from .contenders import BY_NAME, CATS, Contender, Step
from .workload import Size, Workload

# glibc returns blocks from this size on to the system as soon as they are freed. So the resident memory of a process
# is what it uses.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peaks(size: Size, tasks: int, names: Iterable[str], device: torch.device) -> dict[str, int | None]:
    """{contender: peak memory of a step in bytes}: model, gradients, optimizer state and activations.

    On a GPU, that of torch's allocator. On the CPU, the resident memory of the process beyond what it had after a step
    of a tiny model. None: it could not be measured.
    """
    with _environment(MALLOC):
        # Each child is a fork of a fresh process that has imported torch and has not used it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        found = {}
        for name in names:
            with ProcessPoolExecutor(1, context) as pool:
                future = pool.submit(peak, size, tasks, name, device.type, torch.get_num_threads())
                error = future.exception()
                found[name] = None if error else future.result()
                if error:
                    print(f"bench: memory of {name}, {size.name}, K={tasks}: {error}", file=sys.stderr)
        return found


def peak(size: Size, tasks: int, name: str, kind: str, threads: int) -> int | None:
    """The peak memory of a contender, in this process. kind: "cpu" or "cuda"."""
    torch.set_num_threads(threads)
    device, contender = torch.device(kind), BY_NAME[name]
    # The code of libraries and what they keep for themselves are not to count.
    tiny = replace(size, vocab_size=64, sentences=8, model=replace(size.model, d_model=16, heads=2, ffn=16))
    _ready(contender, tiny, 2, device)()
    gc.collect()
    before = measure.held_memory(device)
    call = _ready(contender, size, tasks, device)
    held, extra = measure.held_memory(device), measure.extra_memory(call, device)
    return None if before is None or held is None or extra is None else held - before + extra


def _ready(contender: Contender, size: Size, tasks: int, device: torch.device) -> Step:
    """What takes steps after a first one, in which AdamW creates its state, and cats.CATS sees how many calls come."""
    work = Workload(contender.size(size), tasks, device)
    if contender.kind != CATS:
        work.plain_step()  # before the start, because autogram counts forward passes
    call = contender.start(work)
    if contender.kind == CATS and contender.steps == 1:  # several steps begin with such a one
        call()
    return call


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that start in a with block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
