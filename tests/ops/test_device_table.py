"""Chunks and addresses: every element is in one chunk, and chunks are kept while only addresses change."""

from __future__ import annotations

import importlib
import itertools
import threading
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cats import ops
from cats.ops import device_table, layout

CPU = torch.device("cpu")


def test_chunk_length() -> None:
    least, bytes_, most = (
        device_table.MIN_CHUNK,
        device_table.CHUNK_BYTES,
        device_table.MIN_CHUNK * device_table.MAX_CHUNKS,
    )
    many = device_table.MIN_CHUNK * device_table.ENOUGH  # elements for enough of the shortest chunks
    for row_bytes in 2, 4, 8, 12, 32, 64, 512:
        for elements in 0, 1, least, 2 * many - 1:
            assert device_table.chunk_length(elements, row_bytes) == least
        for elements in 2 * many, 10 * many, most, most + 1, 2 * most, 2 * most + 1, 10**10, 10**12:
            length = device_table.chunk_length(elements, row_bytes)
            assert length & (length - 1) == 0 and length * device_table.MAX_CHUNKS >= elements
            if length > least and length // 2 * device_table.MAX_CHUNKS >= elements:  # longer than it must be
                assert length * row_bytes <= bytes_ and length * device_table.ENOUGH <= elements
            if length * device_table.ENOUGH * 2 <= elements:  # it could be longer
                assert length * row_bytes > bytes_ // 2
    # 256 to 512 KB of gradients, where there are enough elements and the chunk is not the shortest.
    for row_bytes in 8, 12, 16, 32, 36:
        assert bytes_ // 2 < device_table.chunk_length(most, row_bytes) * row_bytes <= bytes_


def as_it_is(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor


def pieces(
    grads: Sequence[Sequence[Any]], groups: Sequence[int], others: Sequence[Sequence[Any]] = ()
) -> device_table.DevicePieces:
    return device_table.device_pieces(grads, others, groups, None, as_it_is)[0]


def decode(geometry: device_table.Geometry) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """The chunks, and the chunks of every group."""
    order, bounds = geometry.order.tolist(), geometry.bounds.tolist()
    assert bounds[0] == 0 and bounds[-1] == geometry.chunk_count == len(geometry.chunks)
    return list(map(tuple, geometry.chunks.tolist())), [order[a:b] for a, b in itertools.pairwise(bounds)]


def test_the_chunks_cover_every_element_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_table, "MIN_CHUNK", 16)
    monkeypatch.setattr(device_table, "MAX_CHUNKS", 8)
    sizes = [1, 15, 16, 17, 200, 31, 64, 0, 3]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float64] + [torch.float32] * 5
    groups = [3, 0, 0, 3, 5, 0, 3, 1, 1]
    grads = [[torch.ones(size + 1, dtype=d)[:size] for size, d in zip(sizes, dtypes, strict=True)] for _ in range(2)]
    grads[1][2] = torch.ones(17)[1:]  # not aligned
    grads[1][5] = torch.ones(1).expand(31)  # not dense
    flat = layout.flatten(grads)
    assert flat.params == [0, 1, 2, 3, 4, 6, 8]
    found = pieces(grads, groups)
    chunks, members = decode(found.geometry)
    assert found.pointers.tolist() == [[row[i].data_ptr() for row in grads] for i in flat.params]
    assert (found.tasks, found.groups, len(members)) == (2, 6, 6)
    assert all(t.data_ptr() % 16 == 0 for t in found.geometry[:3] if isinstance(t, Tensor))

    length = device_table.chunk_length(sum(flat.numels), 2 * 8)
    assert length == 64  # 8 chunks of 32 are less than 316
    for row, numel in enumerate(flat.numels):
        mine = sorted((start, count) for r, start, count in chunks if r == row)
        assert mine == [(start, min(length, numel - start)) for start in range(0, numel, length)]
    assert len(chunks) == sum(-(-numel // length) for numel in flat.numels)
    assert max(count for _, _, count in chunks) == 64

    launches = found.geometry.launches
    assert sum(launch.chunks for launch in launches) == len(chunks)
    for launch in launches:
        for row, _, _ in chunks[launch.first : launch.first + launch.chunks]:
            assert (flat.dtypes[row], flat.aligned[row]) == (launch.dtypes, launch.aligned)
    assert len(found.kinds) == len(set(found.kinds)) == 4

    for group, indices in enumerate(members):
        assert indices == [i for i, (row, _, _) in enumerate(chunks) if groups[flat.params[row]] == group]
    assert members[1] and members[2] == members[4] == []


def test_chunks_of_nothing() -> None:
    found = pieces([[torch.ones(1).expand(3), None]], [0, 2])
    assert (found.geometry.chunk_count, found.geometry.launches, found.pointers.shape) == (0, [], (0, 1))
    assert decode(found.geometry) == ([], [[], [], []])


def test_chunks_are_kept_when_only_addresses_change() -> None:
    def rows(*sizes: int, dtype: torch.dtype = torch.float32, skip: int = 0) -> list[list[Any]]:
        return [[torch.ones(size + skip, dtype=dtype)[skip:] for size in sizes] for _ in range(2)]

    def geometry(*arguments: Any) -> device_table.Geometry:
        return pieces(*arguments).geometry

    first = pieces(rows(5, 7), [0, 1])
    second = pieces(rows(5, 7), [0, 1])
    assert second.geometry is first.geometry and not torch.equal(second.pointers, first.pointers)
    one_missing = rows(5, 7)
    one_missing[0][1] = None
    assert geometry(one_missing, [0, 1]) is first.geometry  # another task still has this gradient
    others = [
        geometry(rows(4, 7), [0, 1]),
        geometry(rows(5, 7, dtype=torch.bfloat16), [0, 1]),
        geometry(rows(5, 7, skip=1), [0, 1]),
        geometry(rows(5, 7), [0, 2]),
        geometry(rows(5, 7), [1, 0]),
        geometry([[None, row[1]] for row in rows(5, 7)], [0, 1]),
        geometry([[row[1], None] for row in rows(5, 7)], [0, 1]),
        geometry(rows(5, 7), [0, 1], rows(5, 7)[:1]),
    ]
    assert len({id(each) for each in [first.geometry, *others]}) == 1 + len(others)


def test_the_oldest_chunks_go_first() -> None:
    def geometry(size: int) -> device_table.Geometry:
        return pieces([[torch.ones(size)]], [0]).geometry

    first, second, *_ = (geometry(1 + n) for n in range(device_table._RECENT))
    assert geometry(1) is first  # used again, so it is now the newest
    geometry(1 + device_table._RECENT)
    assert len(device_table._recent) == device_table._RECENT
    assert geometry(1) is first
    assert geometry(2) is not second


def test_threads_share_what_is_kept() -> None:
    wrong = []

    def work(seed: int) -> None:
        for n in range(300):
            size = 1 + (7 * n + seed) % (2 * device_table._RECENT)
            if pieces([[torch.ones(size)]], [0]).geometry.chunks.tolist() != [[0, 0, size]]:
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong and len(device_table._recent) <= device_table._RECENT


class FakeGpu:
    """A GPU whose memory is the host's, with streams by number, which may be capturing a graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.capturing, self.uploads = 1, False, 0
        stream = types.SimpleNamespace
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream(cuda_stream=self.stream))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(device_table, "_recent", type(device_table._recent)())
        monkeypatch.setattr(device_table, "_captured", {})

    def upload(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.uploads += 1
        return tensor

    def geometry(self, *sizes: int, stream: int = 1, capturing: bool = False) -> device_table.Geometry:
        self.stream, self.capturing = stream, capturing
        flat = layout.flatten([[torch.ones(size) for size in sizes]])
        return device_table._geometry(flat, 1, [0] * len(sizes), torch.device("cuda", 0), self.upload)


def test_another_stream_has_its_own_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    first = gpu.geometry(5)
    assert gpu.geometry(5, stream=2) is not first  # it could read them before they are copied
    assert gpu.geometry(5) is first and gpu.uploads == 2


def test_a_capture_uses_the_chunks_of_an_earlier_call_and_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    first = gpu.geometry(5, stream=1)
    for stream in (3, 4, 5):  # torch captures on another stream than the warm-up
        assert gpu.geometry(5, stream=stream, capturing=True) is first
    assert gpu.uploads == 1 and len(device_table._captured) == 1
    for size in range(10, 12 + device_table._RECENT):
        gpu.geometry(size)
    assert gpu.geometry(5, stream=6, capturing=True) is first  # a graph reads them: they are never deleted
    assert gpu.geometry(5, stream=7) is first
    assert len(device_table._recent) == device_table._RECENT


def test_a_capture_without_an_earlier_call_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its chunks are copied by the graph itself, into the graph's own memory.
    gpu = FakeGpu(monkeypatch)
    assert gpu.geometry(5, capturing=True) is not gpu.geometry(5, capturing=True)
    assert gpu.uploads == 2 and not device_table._recent and not device_table._captured


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_tables_on_a_gpu(name: str) -> None:
    if reason := ops.backends()[name]:
        pytest.skip(reason)
    split = importlib.import_module(f"cats.ops.backends.{name}").split
    device = torch.device("cuda", torch.cuda.current_device())
    grads = [[torch.ones(20_000, device=device), torch.ones(3, device=device)] for _ in range(2)]
    found, _ = split(grads, [], [0, 1], None)
    assert found.pointers.device == found.geometry.chunks.device == device
    with torch.cuda.stream(torch.cuda.Stream()):
        assert split(grads, [], [0, 1], None)[0].geometry is not found.geometry
    again, _ = split(grads, [], [0, 1], None)
    assert again.geometry is found.geometry and torch.equal(again.pointers, found.pointers)
    chunks, members = decode(found.geometry)
    assert found.pointers.tolist() == [[row[i].data_ptr() for row in grads] for i in range(2)]
    assert [count for _, _, count in chunks] == [8192, 8192, 3616, 3] and members == [[0, 1, 2], [3]]


def test_code_of_the_garbage_collector_may_call_operators() -> None:
    # It may run in the thread that holds the lock.
    with device_table._lock:
        assert device_table._lock.acquire(blocking=False)
        device_table._lock.release()
