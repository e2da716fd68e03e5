"""From lists of tensors to memory: what the kernels are told instead of tensors, with nothing copied.

A parameter whose tensors (gradients, results, moments, ...) all have one dense layout, row-major or any permutation of
it, is flat memory to a kernel: an address per tensor and one number of elements. `flatten` finds these parameters; the
others, `odd`, such as expanded gradients or tasks that disagree about the strides, are for `cats.reference`. Statistics
are sums over parameters, so both parts add up.

On a GPU the addresses lie in device memory, with a list of chunks that gives every block of threads its part of a
parameter: `plan` makes and keeps this device table, as long as the addresses stay the same.
"""

from __future__ import annotations

import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from . import _native

    _reads_tensors: bool = _native.use_torch(torch)
except ImportError:
    _reads_tensors = False

Row = Sequence[Tensor | None]

VECTOR = 16  # bytes that a kernel loads at once, if every address of a parameter is a multiple of it

# A chunk is the work of one block of threads: long enough to hide its start, short enough that hundreds of processors
# end together, and so many at most that the partial sums of 128 tasks stay below 64 MB.
MIN_CHUNK = 1 << 13
MAX_CHUNKS = 1 << 14


class Flat(NamedTuple):
    """The parameters of a call that are flat memory, and the indices of those that are not."""

    params: list[int]  # indices among the N; only those with a gradient and with elements
    numels: list[int]
    dtypes: list[tuple[torch.dtype, ...]]  # of the gradients, then of each of the M others
    aligned: list[bool]  # every address is a multiple of VECTOR
    pointers: array.array[int]  # len(params) * (K + M) addresses: K gradients, 0 where there is none, then M others
    odd: list[int]

    def by_dtypes(self) -> dict[tuple[torch.dtype, ...], list[int]]:
        """For every combination of dtypes, the places in `params` of the parameters that have it."""
        if not self.dtypes or self.dtypes.count(self.dtypes[0]) == len(self.dtypes):
            return {self.dtypes[0]: list(range(len(self.dtypes)))} if self.dtypes else {}
        rows: dict[tuple[torch.dtype, ...], list[int]] = {}
        for row, dtypes in enumerate(self.dtypes):
            rows.setdefault(dtypes, []).append(row)
        return rows


def flatten(grads: Sequence[Row], others: Sequence[Row] = ()) -> Flat:
    """The K gradients and M other tensors of every parameter as addresses.

    A parameter without gradients or elements, or with a None among the others, is in neither part.
    """
    if _reads_tensors:
        found = _native.flatten(lists(grads), lists(others), VECTOR, getattr(grads, "views", None))
        if found is not None:
            params, numels, dtypes, aligned, addresses, odd = found
            return Flat(params, numels, dtypes, aligned, array.array("q", addresses), odd)
    return _flatten(grads, others)


def _flatten(grads: Sequence[Row], others: Sequence[Row]) -> Flat:
    """`flatten` in Python, slower: where there is no compiled module, and for subclasses of tensors."""
    flat = Flat([], [], [], [], array.array("q"), [])
    for i in range(len(grads[0])):
        column = [row[i] for row in grads]
        rest = [row[i] for row in others]
        first = next((g for g in column if g is not None), None)
        if first is None or first.numel() == 0 or any(t is None for t in rest):
            continue
        tensors = [t for t in (*column, *rest) if t is not None]
        turned = any(t.is_neg() or t._is_zerotensor() for t in tensors)  # what torch reads is not what lies in memory
        if turned or not (all(t.is_contiguous() for t in tensors) or _one_layout(tensors)):
            flat.odd.append(i)
            continue
        addresses = [0 if t is None else t.data_ptr() for t in (*column, *rest)]
        flat.params.append(i)
        flat.numels.append(first.numel())
        flat.dtypes.append((first.dtype, *(t.dtype for t in rest if t is not None)))
        flat.aligned.append(all(a % VECTOR == 0 for a in addresses))
        flat.pointers.extend(addresses)
    return flat


class Uniform(list[list[Tensor | None]]):
    """K rows of gradients that are alike, and what the compiled module read off them, so that it reads them once."""

    first: list[Tensor | None]  # of every parameter, the first gradient that there is
    views: _native.Views


def uniform(rows: list[list[Tensor | None]]) -> Uniform | None:
    """The rows, if all are plain dense tensors on one device, alike for all tasks.

    None also if that cannot be told quickly: there is no compiled module, or this torch has no DLPack exchange API.
    """
    found = _native.uniform(rows) if _reads_tensors else None
    if found is None:
        return None
    result = Uniform(rows)
    result.first, result.views = found
    return result


def lists(rows: Sequence[Row]) -> list[list[Tensor | None]]:
    """The rows as the compiled module wants them."""
    return [row if type(row) is list else list(row) for row in rows]


def matches(first: Row, row: Row, *, optional: bool = False, moments: bool = False) -> bool:
    """Whether all of `row` are contiguous tensors like the first gradients, or, of their dtypes, like their moments.

    With `optional`, None where there is no gradient. False says only that it takes a closer look.
    """
    return _reads_tensors and _native.matches(first, row, optional, moments)


def select(rows: Sequence[Row], params: Sequence[int]) -> list[list[Tensor | None]]:
    """Every row with these parameters only."""
    return [[row[i] for i in params] for row in rows]


def add_statistics(totals: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    """Adds statistics of some parameters, which may know fewer groups, to those of the others, in place."""
    for total, part in zip(totals, parts, strict=True):
        total[: len(part)] += part


def _one_layout(tensors: Sequence[Tensor]) -> bool:
    """Whether all have the same strides, and these cover the memory without a gap."""
    first = tensors[0]
    axes = [d for d, size in enumerate(first.shape) if size > 1]
    strides = [first.stride(d) for d in axes]
    expected = 1
    for stride, d in sorted(zip(strides, axes, strict=True)):
        if stride != expected:
            return False
        expected *= first.shape[d]
    return all([t.stride(d) for d in axes] == strides for t in tensors[1:])


def chunk_length(elements: int) -> int:
    """Elements per chunk of a call with so many in all: a power of two, a function of nothing else."""
    length = MIN_CHUNK
    while length * MAX_CHUNKS < elements:
        length *= 2
    return length


class Launch(NamedTuple):
    """Neighbouring chunks that one kernel can take: all of these dtypes, all aligned or not."""

    dtypes: tuple[torch.dtype, ...]  # of the gradients, then of each of the M others
    aligned: bool
    first: int
    chunks: int


@dataclass(frozen=True)
class Plan:
    """A device table: one int64 tensor that holds, from these offsets on (in words),

    pointers: K + M addresses per parameter, in the order of `Flat`;
    chunks: three words each, the parameter's row in pointers, the first element, the number of elements;
    order: the chunks' indices sorted by group; bounds: G + 1 words, where each group's begin in order.
    """

    words: Tensor
    width: int  # K + M
    chunks: int
    order: int
    bounds: int
    count: int  # chunks in all
    longest: int  # elements of the longest chunk
    launches: list[Launch]


_plans: OrderedDict[tuple[object, ...], tuple[Plan, Tensor]] = OrderedDict()
_PLANS = 16  # a training loop alternates between few sets of addresses
_captured: list[tuple[Plan, Tensor]] = []  # a CUDA graph copies and reads these again whenever it is replayed


def plan(flat: Flat, groups: Sequence[int], device: torch.device) -> Plan:
    """The device table of these parameters, from the last calls if nothing changed; never waits for the device."""
    # The table is copied on the current stream: on another one it could be read too early.
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


def _make(flat: Flat, groups: Sequence[int], device: torch.device) -> tuple[Plan, Tensor]:
    """The plan, and the pinned memory that its table is copied from."""
    length = chunk_length(sum(flat.numels))
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
        longest=max((length for _, _, length in chunks), default=0),
        launches=launches,
    )
    return made, host
