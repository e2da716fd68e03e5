"""Turns lists of tensors into dense pieces: addresses, which kernels take instead of tensors. Nothing is copied.

A parameter is a dense piece if all its tensors (gradients, results, moments, ...) have the same layout without gaps:
row-major, or any permutation of it. For such a parameter a kernel needs only one address per tensor and the number of
elements. The reference computes all other parameters (the fallback). Examples are expanded gradients, and parameters
whose gradients have different strides for different tasks. Statistics are sums over parameters, so the statistics of
both parts are added.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .interface import Dtypes, Row

try:
    from cats import _native

    # Whether the compiled module can read tensors. Otherwise the Python functions below do it, more slowly. (A module
    # that was built from older sources has no `shared` or no `row_matrices`.)
    _reads_tensors: bool = hasattr(_native, "shared") and _native.use_torch(torch)
    _reads_matrices: bool = _reads_tensors and hasattr(_native, "row_matrices")
except ImportError:
    _reads_tensors = _reads_matrices = False

VECTOR = 16  # bytes that a kernel loads at once if every address of a parameter is a multiple of it
TYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float64: 3,
}  # as csrc/ numbers the dtypes


class Flat(NamedTuple):
    """The dense parameters of a call, and the indices of those for the fallback."""

    params: list[int]  # indices among the N parameters; only those with a gradient and with elements
    numels: list[int]
    dtypes: list[Dtypes]
    aligned: list[bool]  # every address is a multiple of VECTOR
    pointers: array.array[int]  # len(params) * (K + M) addresses: K gradients, 0 for None, then the M other tensors
    fallback: list[int]

    def by_dtypes(self) -> dict[Dtypes, list[int]]:
        """For every combination of dtypes, the positions in `params` of the parameters that have it."""
        if not self.dtypes or self.dtypes.count(self.dtypes[0]) == len(self.dtypes):
            return {self.dtypes[0]: list(range(len(self.dtypes)))} if self.dtypes else {}
        rows: dict[Dtypes, list[int]] = {}
        for row, dtypes in enumerate(self.dtypes):
            rows.setdefault(dtypes, []).append(row)
        return rows

    def keep(self, takes: Callable[[Dtypes], bool], width: int) -> Flat:
        """Only the parameters whose dtypes `takes` accepts; the others join the fallback. width: K + M."""
        kept = [j for j, dtypes in enumerate(self.dtypes) if takes(dtypes)]
        if len(kept) == len(self.params):
            return self
        pointers = array.array("q")
        for j in kept:
            pointers.extend(self.pointers[j * width : (j + 1) * width])
        return Flat(
            params=[self.params[j] for j in kept],
            numels=[self.numels[j] for j in kept],
            dtypes=[self.dtypes[j] for j in kept],
            aligned=[self.aligned[j] for j in kept],
            pointers=pointers,
            fallback=self.fallback + [i for j, i in enumerate(self.params) if j not in kept],
        )


def flatten(grads: Sequence[Row], others: Sequence[Row] = ()) -> Flat:
    """The addresses of the K gradients and M other tensors of every parameter.

    Leaves out parameters for which there is nothing to compute: those without a gradient or without elements, and those
    with None among the other tensors.
    """
    if _reads_tensors:
        found = _native.flatten(_lists(grads), _lists(others), VECTOR, getattr(grads, "views", None))
        if found is not None:
            params, numels, dtypes, aligned, addresses, fallback = found
            return Flat(params, numels, dtypes, aligned, array.array("q", addresses), fallback)
    return _flatten(grads, others)


def _flatten(grads: Sequence[Row], others: Sequence[Row]) -> Flat:
    """`flatten` in Python: for subclasses of Tensor, or without the compiled module.

    Raises ValueError for a tensor without memory: the last check before a kernel uses its address.
    """
    flat = Flat([], [], [], [], array.array("q"), [])
    for i in range(len(grads[0])):
        column = [row[i] for row in grads]
        rest = [row[i] for row in others]
        first = next((g for g in column if g is not None), None)
        if first is None or first.numel() == 0 or any(t is None for t in rest):
            continue
        tensors = [t for t in (*column, *rest) if t is not None]
        lazy = any(t.is_neg() or t._is_zerotensor() for t in tensors)  # the memory does not hold the tensor's values
        if lazy or not (all(t.is_contiguous() for t in tensors) or _one_layout(tensors)):
            flat.fallback.append(i)
            continue
        addresses = [0 if t is None else address(t) for t in (*column, *rest)]
        flat.params.append(i)
        flat.numels.append(first.numel())
        flat.dtypes.append((first.dtype, *(t.dtype for t in rest if t is not None)))
        flat.aligned.append(all(a % VECTOR == 0 for a in addresses))
        flat.pointers.extend(addresses)
    return flat


def address(t: Tensor) -> int:
    """The address of the tensor's memory. Raises ValueError if the memory does not exist or does not hold all of it."""
    if t.numel() > 0 and (t.data_ptr() == 0 or not in_storage(t)):
        raise ValueError(
            f"a tensor of shape {tuple(t.shape)} has no memory: its storage was freed, or it is not a real one"
        )
    return t.data_ptr()


def in_storage(t: Tensor) -> bool:
    """Whether all elements lie in the tensor's storage. They do not after storage.resize_(): FSDP frees memory so."""
    if t.numel() == 0:
        return True
    last = t.storage_offset() + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size() <= t.untyped_storage().nbytes()


def is_plain(t: Tensor) -> bool:
    """Whether the tensor is known to be a plain float tensor, with the numbers in memory as they are."""
    return _reads_tensors and _native.uniform([[t]]) is not None and not t.is_neg()


def shared(rows: list[list[Any]], written: Sequence[Row]) -> tuple[int, int, int, int] | None:
    """A tensor of `written` that shares memory with a gradient of its parameter or with another tensor of `written`.

    As (row of written, parameter, row, parameter). A row below K is a task, K + r is row r of `written`. None if there
    is no such tensor. Of tensors with gaps, only those that begin at the same address are found.
    """
    return _native.shared(rows.views, _lists(written)) if isinstance(rows, Uniform) else _shared(rows, written)


def _shared(rows: Sequence[Row], written: Sequence[Row]) -> tuple[int, int, int, int] | None:
    """`shared` in Python."""
    places = []
    for i, column in enumerate(zip(*written, strict=True)):
        own = [(*_extent(t), r, i) for r, t in enumerate(column) if t is not None and t.numel() > 0]
        gradients = [(*_extent(g), n) for n, row in enumerate(rows) if (g := row[i]) is not None] if own else []
        for begin, end, r, _ in own:
            for other, its_end, n in gradients:
                if begin < its_end and other < end:
                    return r, i, n, i
        places += own
    places.sort()
    for (_, end, r, i), (begin, _, other, j) in pairwise(places):
        if begin < end:
            return other, j, len(rows) + r, i
    return None


def _extent(t: Tensor) -> tuple[int, int]:
    """The addresses of the tensor's first byte and after its last one; after its first element if it has gaps."""
    begin = t.data_ptr()
    return begin, begin + (t.nbytes if t.is_contiguous() or _one_layout([t]) else t.element_size())


def _one_layout(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors have the same strides, and these cover the memory without a gap."""
    first = tensors[0]
    axes = [d for d, size in enumerate(first.shape) if size > 1]
    strides = [first.stride(d) for d in axes]
    expected = 1
    for stride, d in sorted(zip(strides, axes, strict=True)):
        if stride != expected:
            return False
        expected *= first.shape[d]
    return all([t.stride(d) for d in axes] == strides for t in tensors[1:])


class HostPieces(NamedTuple):
    """The dense pieces of a call, as kernels on the CPU take them: one Work for every combination of dtypes."""

    works: list[tuple[_native.Work, Dtypes, list[int]]]  # with the parameters of each
    tasks: int
    groups: int  # number of groups
    device: torch.device = torch.device("cpu")

    @property
    def kinds(self) -> list[tuple[Dtypes, bool]]:
        """The dtypes of each Work, and True: on the CPU, alignment makes no difference."""
        return [(dtypes, True) for _, dtypes, _ in self.works]


def host_pieces(
    grads: Sequence[Row],
    others: Sequence[Row],
    groups: Sequence[int],
    takes: Callable[[Dtypes], bool] | None,
) -> tuple[HostPieces, list[int]]:
    """The dense pieces, and the parameters left for the fallback: not dense, or of dtypes that `takes` refuses.

    takes: None accepts all dtypes.
    """
    threads = torch.get_num_threads()
    views = getattr(grads, "views", None)
    found = _native.works(_lists(grads), _lists(others), list(groups), threads, views)
    works, fallback = _works(grads, others, groups, threads) if found is None else found
    if takes is not None:
        for _, dtypes, params in works:
            if not takes(dtypes):
                fallback = [*fallback, *params]
        if len(fallback) > 0:
            works = [work for work in works if takes(work[1])]
    return HostPieces(works, len(grads), max(groups) + 1), fallback


def _works(
    grads: Sequence[Row], others: Sequence[Row], groups: Sequence[int], threads: int
) -> tuple[list[tuple[_native.Work, Dtypes, list[int]]], list[int]]:
    """For every combination of dtypes its Work and its parameters, and the fallback: `_native.works` in Python."""
    flat = flatten(grads, others)
    width = len(grads) + len(others)
    works = []
    for dtypes, rows in flat.by_dtypes().items():
        params = [flat.params[row] for row in rows]
        work = _native.Work(
            b"".join(flat.pointers[row * width : (row + 1) * width].tobytes() for row in rows),
            [flat.numels[row] for row in rows],
            [groups[i] for i in params],
            len(grads),
            len(others),
            TYPES[dtypes[0]],
            threads,
        )
        works.append((work, dtypes, params))
    return works, flat.fallback


class Uniform(list[list[Any]]):
    """K rows of gradients, equal in shape and dtype for all tasks, and what the compiled module has read from them."""

    first: list[Tensor | None]  # per parameter, the first gradient that is not None
    views: _native.Views


def uniform(rows: list[list[Any]]) -> Uniform | None:
    """The rows, if all gradients are plain dense tensors on one device, of the same shape and dtype for all tasks.

    None also if this cannot be found out quickly: without the compiled module, or without torch's DLPack exchange API.
    """
    found = _native.uniform(rows) if _reads_tensors else None
    if found is None:
        return None
    result = Uniform(rows)
    result.first, result.views = found
    return result


def matches(first: Row, row: Row, *, optional: bool = False, moments: bool = False) -> bool:
    """Whether `row` has a contiguous tensor of the same shape, dtype and device for every gradient in `first`.

    moments: the tensors must have the dtype of AdamW's moments instead. optional: None is allowed where the gradient is
    None. If the result is False, the tensors may still be right: then the slower checks in Python are needed.
    """
    return _reads_tensors and _native.matches(first, row, optional, moments)


class RowPieces(NamedTuple):
    """Two matrices of R rows and the task of every row, as the kernels of row_dots take them."""

    x: Tensor  # (R, W): the elements of a row are neighbours
    y: Tensor  # the same, with the dtype of x, or float32 if that of x has 16 bits
    rows: Tensor  # (R,) int64, contiguous
    tasks: int

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def aligned(self) -> bool:
        """Whether every row begins at a multiple of VECTOR."""
        x, y = self.x, self.y
        return (x.data_ptr() | y.data_ptr() | x.stride(0) * x.itemsize | y.stride(0) * y.itemsize) % VECTOR == 0

    @property
    def kinds(self) -> list[tuple[Dtypes, bool]]:
        return [((self.x.dtype, self.y.dtype), self.aligned)]


def row_pieces(x: Tensor, y: Tensor, rows: Tensor, tasks: int) -> RowPieces:
    """The matrices without a copy, unless the elements of a row have gaps or no kernel takes the two dtypes."""
    if x.dtype is not y.dtype:
        if x.dtype is torch.float32:
            x, y = y, x
        if y.dtype is not torch.float32 or x.dtype is torch.float64:
            common = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(common), y.to(common)
    return RowPieces(_dense_rows(x), _dense_rows(y), rows.contiguous(), tasks)


def _dense_rows(t: Tensor) -> Tensor:
    if (t.shape[1] > 1 and t.stride(1) != 1) or t.is_neg() or t._is_zerotensor():
        return t.clone(memory_format=torch.contiguous_format)
    return t


def row_matrices(x: Tensor, y: Tensor, rows: Tensor) -> bool:
    """Whether these are plain tensors, as row_dots takes them. If not, the slower checks in Python are needed."""
    return _reads_matrices and _native.row_matrices(x, y, rows)


def first_outside(rows: Tensor, tasks: int) -> int:
    """The first position in `rows`, (R,) int64 on the CPU, that has neither -1 nor a task; -1 if there is none."""
    if _reads_matrices and rows.is_contiguous():
        return _native.first_outside(rows.data_ptr(), rows.numel(), tasks)
    outside = ((rows < -1) | (rows >= tasks)).nonzero()
    return int(outside[0]) if len(outside) else -1


def device_of(rows: Sequence[Row]) -> torch.device | None:
    """The device of the first tensor; None if there is no tensor."""
    for row in rows:
        for t in row:
            if t is not None:
                return t.device
    return None


def select(rows: Sequence[Row], params: Sequence[int]) -> list[list[Tensor | None]]:
    """Every row with these parameters only."""
    return [[row[i] for i in params] for row in rows]


def _lists(rows: Sequence[Row]) -> list[list[Tensor | None]]:
    """The rows as lists, which the compiled module needs."""
    if type(rows) is Uniform:
        return rows
    return [row if type(row) is list else list(row) for row in rows]
