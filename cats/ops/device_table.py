"""What a kernel on a GPU reads instead of lists of tensors: a table of their addresses, and a list of chunks of work.

A chunk is the part of a parameter that one block of threads processes. The chunks depend on sizes, dtypes, alignment
and groups, which stay the same from step to step. So their list, the geometry, is kept on the device. Addresses change,
because autograd returns new tensors at every step. So a table of addresses is uploaded at every call.

CUDA graphs: while a graph is captured, a backend uploads addresses without host memory, which may be freed before the
graph is replayed (see `Upload`). The geometry is the one that a call before the capture has made. It is on the device
by then, because torch.cuda.graph waits for the device before it captures. From then on it is kept for ever, because
nothing tells when the graph is deleted: one geometry for each set of shapes, however many graphs are captured.
"""

from __future__ import annotations

import array
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
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


class Geometry(NamedTuple):
    """The chunks of a call. Tensors are int64 on the device, and begin at addresses that are multiples of 16."""

    chunks: Tensor  # (C, 3): a chunk's row in the table of addresses, its first element, its number of elements
    order: Tensor  # (C,): the chunks' indices, sorted by group
    bounds: Tensor  # (G + 1,): where each group begins in order
    launches: list[Launch]

    @property
    def chunk_count(self) -> int:
        return len(self.order)


class DevicePieces(NamedTuple):
    """The dense pieces of a call, as kernels on a GPU take them."""

    pointers: Tensor  # (rows, K + M) int64 on the device: addresses, in the order of `layout.Flat`
    geometry: Geometry
    device: torch.device
    tasks: int
    groups: int  # number of groups
    params: list[int]  # the parameter of each row of pointers

    @property
    def kinds(self) -> list[tuple[Dtypes, bool]]:
        """The dtypes and the alignment of each launch."""
        return [(launch.dtypes, launch.aligned) for launch in self.geometry.launches]


# Copies a tensor from the CPU to the device, on the current stream, without waiting. The tensor is deleted right after
# the call, and a CUDA graph that captures the call must find the same numbers at every replay.
Upload = Callable[[Tensor, torch.device], Tensor]


def device_pieces(
    grads: Sequence[Row],
    others: Sequence[Row],
    groups: Sequence[int],
    takes: Callable[[Dtypes], bool] | None,
    upload: Upload,
) -> tuple[DevicePieces, list[int]]:
    """The dense pieces, and the parameters left for the fallback: not dense, or of dtypes that `takes` refuses.

    takes: None accepts all dtypes. At least one gradient is not None.
    """
    device = layout.device_of(grads)
    assert device is not None
    flat = layout.flatten(grads, others)
    width = len(grads) + len(others)
    if takes is not None:
        flat = flat.keep(takes, width)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        geometry = _geometry(flat, len(grads), groups, device, upload)
        pointers = upload(_words(flat.pointers), device).view(len(flat.params), width)
    pieces = DevicePieces(pointers, geometry, device, len(grads), max(groups) + 1, flat.params)
    return pieces, flat.fallback


# Geometries by tasks, sizes, dtypes, alignment, groups and device. Those in _recent also belong to a stream: they are
# copied on it, so another stream could read them too early, or after their memory has got another owner.
_Key = tuple[object, ...]
_recent: OrderedDict[tuple[_Key, int], Geometry] = OrderedDict()
_RECENT = 16  # a training loop alternates between a few
_captured: dict[_Key, Geometry] = {}
_lock = threading.RLock()  # not a Lock: the garbage collector may run code that calls an operator


def _geometry(flat: layout.Flat, tasks: int, groups: Sequence[int], device: torch.device, upload: Upload) -> Geometry:
    """The geometry of these parameters: a kept one, or a new one. Never waits for the device."""
    on_gpu = device.type == "cuda"
    stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
    sizes = tuple(flat.params), tuple(flat.numels), tuple(flat.dtypes), tuple(flat.aligned)
    key = (tasks, *sizes, tuple(groups), device)
    capturing = on_gpu and torch.cuda.is_current_stream_capturing()
    place = key, stream
    with _lock:
        found = _recent.pop(place, None)
        if found is not None:
            _recent[place] = found  # as the last
        elif _captured:
            found = _captured.get(key)
        if capturing and found is None:
            found = next((geometry for (other, _), geometry in list(_recent.items()) if other == key), None)
        if capturing and found is not None:
            _captured[key] = found
    if found is not None:
        return found
    made = _make(flat, tasks, groups, device, upload)
    if not capturing:  # otherwise its memory is the graph's
        with _lock:
            _recent[place] = made
            while len(_recent) > _RECENT:
                _recent.popitem(last=False)
    return made


def _make(flat: layout.Flat, tasks: int, groups: Sequence[int], device: torch.device, upload: Upload) -> Geometry:
    # Only the gradients count, so that all operators have the same chunks, and their sums the same bits.
    length = chunk_length(sum(flat.numels), tasks * max((dtypes[0].itemsize for dtypes in flat.dtypes), default=0))
    kinds: dict[tuple[tuple[str, ...], bool], list[int]] = {}
    for row, (dtypes, aligned) in enumerate(zip(flat.dtypes, flat.aligned, strict=True)):
        kinds.setdefault((tuple(map(str, dtypes)), aligned), []).append(row)
    numels = np.array(flat.numels, dtype=np.int64)
    per_row = -(-numels // length)
    launches, rows, first = [], [], 0
    for (_, aligned), members in sorted(kinds.items()):
        count = int(per_row[members].sum())
        launches.append(Launch(flat.dtypes[members[0]], aligned, first, count))
        rows += members
        first += count
    ordered = np.array(rows, dtype=np.int64)
    row_of = np.repeat(ordered, per_row[ordered])  # of every chunk
    firsts = np.cumsum(per_row[ordered]) - per_row[ordered]  # the first chunk of every row
    starts = (np.arange(first) - np.repeat(firsts, per_row[ordered])) * length
    chunks = np.stack([row_of, starts, np.minimum(length, numels[row_of] - starts)], axis=1)
    group_of = np.array(groups, dtype=np.int64)[np.array(flat.params, dtype=np.int64)][row_of]
    order = np.argsort(group_of, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(group_of, minlength=max(groups) + 1))])
    # One upload for the three parts. Each begins at an even word, so that its address is a multiple of 16.
    parts = [part.astype(np.int64).reshape(-1) for part in (chunks, order, bounds)]
    begins = [0, *np.cumsum([len(part) + len(part) % 2 for part in parts]).tolist()]
    words = np.zeros(begins[-1], dtype=np.int64)
    for begin, part in zip(begins, parts, strict=False):
        words[begin : begin + len(part)] = part
    table = upload(torch.from_numpy(words), device)
    views = [table[begin : begin + len(part)] for begin, part in zip(begins, parts, strict=False)]
    return Geometry(views[0].view(-1, 3), views[1], views[2], launches)


def _words(pointers: array.array[int]) -> Tensor:
    """The addresses as an int64 tensor on the CPU, in the same memory."""
    return (
        torch.frombuffer(pointers, dtype=torch.int64) if pointers else torch.empty(0, dtype=torch.int64, device="cpu")
    )
