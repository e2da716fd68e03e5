"""Chunks and the device table: every element is in one chunk, and a table is kept while nothing changes."""

from __future__ import annotations

import itertools

import pytest
import torch

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


def decode(plan: device_table.Plan, groups: int) -> tuple[list[list[int]], list[tuple[int, ...]], list[list[int]]]:
    """Pointers by parameter, chunks, and the chunks of every group."""
    words = plan.words.tolist()
    pointers = [words[i : i + plan.width] for i in range(0, plan.chunks, plan.width)] if plan.width else []
    chunks = [tuple(words[i : i + 3]) for i in range(plan.chunks, plan.chunks + 3 * plan.count, 3)]
    order, bounds = words[plan.order : plan.order + plan.count], words[plan.bounds :]
    assert len(bounds) == groups + 1 and bounds[0] == 0 and bounds[-1] == plan.count
    return pointers, chunks, [order[a:b] for a, b in itertools.pairwise(bounds)]


def test_a_plan_covers_every_element_once(monkeypatch: pytest.MonkeyPatch) -> None:
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
    plan = device_table.plan(flat, groups, CPU)
    pointers, chunks, members = decode(plan, 6)
    assert pointers == [[row[i].data_ptr() for row in grads] for i in flat.params]

    length = device_table.chunk_length(sum(flat.numels), 2 * 8)
    assert length == 64  # 8 chunks of 32 are less than 316
    for row, numel in enumerate(flat.numels):
        mine = sorted((start, count) for r, start, count in chunks if r == row)
        assert mine == [(start, min(length, numel - start)) for start in range(0, numel, length)]
    assert plan.count == len(chunks) == sum(-(-numel // length) for numel in flat.numels)
    assert max(count for _, _, count in chunks) == 64

    assert sum(launch.chunks for launch in plan.launches) == plan.count
    for launch in plan.launches:
        for row, _, _ in chunks[launch.first : launch.first + launch.chunks]:
            assert (flat.dtypes[row], flat.aligned[row]) == (launch.dtypes, launch.aligned)
    kinds = [(launch.dtypes, launch.aligned) for launch in plan.launches]
    assert len(kinds) == len(set(kinds)) == 4

    for group, indices in enumerate(members):
        assert indices == [i for i, (row, _, _) in enumerate(chunks) if groups[flat.params[row]] == group]
    assert members[1] and members[2] == members[4] == []


def test_a_plan_of_nothing() -> None:
    flat = layout.flatten([[torch.ones(1).expand(3), None]])
    plan = device_table.plan(flat, [0, 2], CPU)
    assert (plan.count, plan.launches) == (0, [])
    assert decode(plan, 3) == ([], [], [[], [], []])


def test_plans_are_kept_while_nothing_changes() -> None:
    grads = [[torch.ones(5), torch.ones(7)] for _ in range(2)]
    first = device_table.plan(layout.flatten(grads), [0, 1], CPU)
    assert device_table.plan(layout.flatten(grads), [0, 1], CPU) is first
    # A plan depends on all of these.
    shorter = [[row[0][:4], row[1]] for row in grads]
    moved = [grads[0], [grads[1][0], torch.ones(7)]]
    retyped = [[row[0], row[1].view(torch.int32).view(torch.float32).view(7)] for row in grads]
    assert device_table.plan(layout.flatten(retyped), [0, 1], CPU) is first
    others = [
        device_table.plan(layout.flatten(shorter), [0, 1], CPU),
        device_table.plan(layout.flatten(moved), [0, 1], CPU),
        device_table.plan(layout.flatten(grads), [0, 2], CPU),
        device_table.plan(layout.flatten(grads), [1, 0], CPU),
        device_table.plan(layout.flatten([[None, row[1]] for row in grads]), [0, 1], CPU),
        device_table.plan(layout.flatten([[row[1], None] for row in grads]), [0, 1], CPU),
        device_table.plan(layout.flatten(grads[:1]), [0, 1], CPU),
        device_table.plan(layout.flatten(grads[:1], grads[1:]), [0, 1], CPU),
    ]
    assert len({id(plan) for plan in [first, *others]}) == 1 + len(others)


def test_the_oldest_plan_goes_first() -> None:
    rows = [[[torch.ones(3)]] for _ in range(device_table._PLANS + 1)]
    plans = [device_table.plan(layout.flatten(grads), [0], CPU) for grads in rows[:-1]]
    assert device_table.plan(layout.flatten(rows[0]), [0], CPU) is plans[0]  # used again, so it is now the newest
    device_table.plan(layout.flatten(rows[-1]), [0], CPU)
    assert len(device_table._plans) == device_table._PLANS
    assert device_table.plan(layout.flatten(rows[0]), [0], CPU) is plans[0]
    assert device_table.plan(layout.flatten(rows[1]), [0], CPU) is not plans[1]


@pytest.mark.gpu
def test_plans_on_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    grads = [[torch.ones(20_000, device=device), torch.ones(3, device=device)] for _ in range(2)]
    flat = layout.flatten(grads)
    plan = device_table.plan(flat, [0, 1], device)
    assert plan.words.device == device
    # Another stream could read the table before it is copied.
    with torch.cuda.stream(torch.cuda.Stream()):
        assert device_table.plan(flat, [0, 1], device) is not plan
    assert device_table.plan(flat, [0, 1], device) is plan
    pointers, chunks, members = decode(plan, 2)
    assert pointers == [[row[i].data_ptr() for row in grads] for i in range(2)]
    assert [count for _, _, count in chunks] == [8192, 8192, 3616, 3] and members == [[0, 1, 2], [3]]
