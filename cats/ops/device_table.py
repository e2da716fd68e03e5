"""The device table: a table in GPU memory with the addresses of a call's tensors and the chunks of work.

A GPU kernel cannot follow lists of tensors. Instead it reads a table of addresses in device memory, and a list of
chunks. A chunk is the part of a parameter that one block of threads processes. A plan is such a table with its kernel
launches. Plans are kept and used again in later calls with the same addresses, groups and stream.
"""

from __future__ import annotations

import array
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import layout
from .interface import Dtypes, Row

# A chunk is the work of one block of threads. It is long enough to hide the start of the block: 512 KB of gradients. It
# is short enough that there are many, so that all multiprocessors finish at about the same time: an H200 runs up to 660
# blocks at a time, so ENOUGH chunks are three rounds. It has at least MIN_CHUNK elements, because the partial sums of a
# chunk of 128 tasks are 66 KB. At most MAX_CHUNKS keep all sums of 128 tasks below 64 MB, except those of gram.
CHUNK_BYTES = 1 << 19
ENOUGH = 1 << 11
MIN_CHUNK = 1 << 13
MAX_CHUNKS = 1 << 14


def chunk_length(elements: int, row_bytes: int) -> int:
    """Elements per chunk: a power of two that depends on these numbers alone.

    elements: of all parameters of the call. row_bytes: of the gradients of one element, for all tasks together.
    """
    length = MIN_CHUNK
    while length * MAX_CHUNKS < elements or (2 * length * row_bytes <= CHUNK_BYTES and 2 * length * ENOUGH <= elements):
        length *= 2
    return length


class Launch(NamedTuple):
    """Consecutive chunks for one kernel launch. All have the same dtypes, and either all are aligned or none is."""

    dtypes: Dtypes
    aligned: bool
    first: int
    chunks: int


@dataclass(frozen=True)
class Plan:
    """A device table: one int64 tensor with four parts. `chunks`, `order` and `bounds` say where they begin, in words.

    pointers (at 0): K + M addresses per parameter, in the order of `Flat`.
    chunks: three words per chunk: the parameter's row in pointers, the first element, the number of elements.
    order: the chunks' indices, sorted by group.
    bounds: G + 1 words: where each group begins in order.
    """

    words: Tensor
    width: int  # K + M
    chunks: int
    order: int
    bounds: int
    count: int  # number of chunks
    launches: list[Launch]


class DevicePieces(NamedTuple):
    """The dense pieces of a call, as kernels on a GPU take them."""

    plan: Plan
    device: torch.device
    tasks: int
    groups: int  # number of groups


def device_pieces(
    grads: Sequence[Row],
    others: Sequence[Row],
    groups: Sequence[int],
    takes: Callable[[Dtypes], bool] | None,
) -> tuple[DevicePieces, list[int]]:
    """The dense pieces, and the parameters left for the fallback: not dense, or of dtypes that `takes` refuses.

    takes: None accepts all dtypes. At least one gradient is not None.
    """
    device = layout.device_of(grads)
    assert device is not None
    flat = layout.flatten(grads, others)
    if takes is not None:
        flat = flat.keep(takes, len(grads) + len(others))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return DevicePieces(plan(flat, groups, device), device, len(grads), max(groups) + 1), flat.fallback


_plans: OrderedDict[tuple[object, ...], tuple[Plan, Tensor]] = OrderedDict()
_PLANS = 16  # a training loop alternates between a few sets of addresses
_captured: list[tuple[Plan, Tensor]] = []  # kept forever: a CUDA graph copies and reads these at every replay


def plan(flat: layout.Flat, groups: Sequence[int], device: torch.device) -> Plan:
    """The device table of these parameters: a kept one if nothing changed. Never waits for the device."""
    # The stream is part of the key: the table is copied on this stream, so another stream could read it too early.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    numbers = (tuple(flat.params), tuple(flat.numels), tuple(flat.dtypes), tuple(groups))
    key = (flat.pointers.tobytes(), *numbers, device, stream)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(_make(flat, groups, device))
        return _captured[-1][0]
    known = _plans.get(key)
    if known is not None:
        _plans.move_to_end(key)
        return known[0]
    made = _make(flat, groups, device)
    _plans[key] = made
    if len(_plans) > _PLANS:
        _plans.popitem(last=False)
    return made[0]


def _make(flat: layout.Flat, groups: Sequence[int], device: torch.device) -> tuple[Plan, Tensor]:
    """The plan, and the pinned memory that its table is copied from."""
    # Only the gradients count, so that all operators have the same chunks, and their sums the same bits.
    others = len(flat.dtypes[0]) - 1 if flat.dtypes else 0
    tasks = len(flat.pointers) // max(1, len(flat.params)) - others
    length = chunk_length(sum(flat.numels), tasks * max((dtypes[0].itemsize for dtypes in flat.dtypes), default=0))
    kinds: dict[tuple[tuple[str, ...], bool], list[int]] = {}
    for row, (dtypes, aligned) in enumerate(zip(flat.dtypes, flat.aligned, strict=True)):
        kinds.setdefault((tuple(map(str, dtypes)), aligned), []).append(row)
    chunks: list[tuple[int, int, int]] = []
    launches = []
    for (_, aligned), rows in sorted(kinds.items()):
        first = len(chunks)
        for row in rows:
            numel = flat.numels[row]
            chunks += [(row, start, min(length, numel - start)) for start in range(0, numel, length)]
        launches.append(Launch(flat.dtypes[rows[0]], aligned, first, len(chunks) - first))
    members: list[list[int]] = [[] for _ in range(max(groups) + 1)]
    for index, (row, _, _) in enumerate(chunks):
        members[groups[flat.params[row]]].append(index)
    words = array.array("q", flat.pointers)
    chunk_words = len(words)
    for chunk in chunks:
        words.extend(chunk)
    order = len(words)
    bounds = [0]
    for indices in members:
        words.extend(indices)
        bounds.append(bounds[-1] + len(indices))
    bound_words = len(words)
    words.extend(bounds)
    host = torch.tensor(words, dtype=torch.int64, pin_memory=device.type == "cuda")
    made = Plan(
        words=host.to(device, non_blocking=True),
        width=len(flat.pointers) // max(1, len(flat.params)),
        chunks=chunk_words,
        order=order,
        bounds=bound_words,
        count=len(chunks),
        launches=launches,
    )
    return made, host
