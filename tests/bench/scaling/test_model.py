"""The cost model, against values computed by hand."""

from __future__ import annotations

import math

import pytest

from bench.scaling.model import (
    FSDP2,
    GRAM,
    REPLICAS,
    Hardware,
    Job,
    Link,
    Traffic,
    amortised,
    seconds,
    step_of,
)

LINK = Link(latency=1e-3, bandwidth=1e6)
SLOW = Hardware(operations=1e9, memory_rate=1e9, call=0.5, near=LINK, far=LINK, node=4)
JOB = Job(parameters=1e6, tokens=100, tasks=10, processes=4)


def test_collectives() -> None:
    # Around a ring of 4, each process sends 3 messages of a quarter of the data.
    assert LINK.half_ring(8e6, 4) == pytest.approx(3 * (1e-3 + 2.0))
    assert LINK.half_ring(8e6, 1) == 0
    assert LINK.half_tree(8e6, 8) == pytest.approx(3e-3 + 8.0)
    assert LINK.half_tree(8e6, 1) == 0
    assert SLOW.sending(Traffic(8e6, 2, count=5), 4) == pytest.approx(10 * 3 * (1e-3 + 2.0))


def test_two_levels() -> None:
    """Two nodes of four: a ring of 4 over all data, then a ring of 2 over a quarter of them."""
    two = Hardware(1e9, 1e9, 0.0, near=Link(0.0, 4e6), far=Link(0.0, 1e6), node=4)
    assert two.sending(Traffic(8e6, 1), 8) == pytest.approx(3 * 2e6 / 4e6 + 1 * 1e6 / 1e6)


def test_small_all_reduces_take_trees() -> None:
    flat = Hardware(1e9, 1e9, 0.0, near=LINK, far=LINK, node=64, trees=True)
    assert flat.sending(Traffic(8, 2), 64) == pytest.approx(2 * (6e-3 + 8e-6))
    assert flat.sending(Traffic(8, 1), 64) == pytest.approx(63 * (1e-3 + 8 / 64 / 1e6))  # only all-reduces
    assert flat.sending(Traffic(1e9, 2), 64) == pytest.approx(2 * 63 * (1e-3 + 1e9 / 64 / 1e6))  # large: the ring


# Of 4 processes: operations per parameter and token, passes, bytes moved, bytes sent (each times P), collectives.
@pytest.mark.parametrize(
    ("method", "operations", "passes", "moved", "sent", "collectives", "memory"),
    [
        ("plain", 6, 1, 28, 8, 1, 0),
        ("per_task", 6, 10, 28 + 3 * 40, 8, 2, 40),
        ("two_pass", 12, 20, 28 + 3 * 40, 8, 2, 4),
        ("forward_mode", 12, 2, 32, 8, 2, 4),
        ("one_pass", 8, 1, 32, 8, 2, 0),
        ("Gram, K all-reduces", 6, 10, 28 + 5 * 40, 80, 1, 40),
        (GRAM, 6, 10, 28 + 1.5 * 40, 44, 3, 40),
    ],
)
def test_replicas(
    method: str, operations: float, passes: int, moved: float, sent: float, collectives: int, memory: float
) -> None:
    step = step_of(method, JOB)
    assert (step.operations, step.passes, step.collectives) == (operations, passes, collectives)
    assert step.moved == pytest.approx(moved * 1e6) and step.memory == pytest.approx(memory * 1e6)
    numbers = {"plain": 0, "Gram, K all-reduces": 0, GRAM: 2 * 800}.get(method, 2 * 80)
    assert step.sent(4) == pytest.approx((sent * 1e6 + numbers) * 3 / 4)


@pytest.mark.parametrize(("method", "halves"), [("plain", 3), ("per_task", 30), ("two_pass", 33), ("one_pass", 4)])
def test_sharded(method: str, halves: int) -> None:
    step = step_of(method, Job(1e6, 100, 10, 4, wire=2, groups=5), sharded=True)
    traffic = step.traffic[0]
    assert (traffic.size, traffic.halves, traffic.count) == (1e6 * 2 / 5, 1, 5 * halves)
    assert step.memory == pytest.approx(step_of(method, JOB).memory / 4)


def test_one_pass_keeps_the_gradients_at_the_outputs() -> None:
    job = Job(1e6, 100, 10, 4, wire=2, widths=3000)
    assert step_of("one_pass", job).memory == step_of("one_pass", job, sharded=True).memory == 100 * 3000 * 2
    assert step_of("one_pass", Job(1e6, 100, 10, 1, widths=3000)).memory == 0


def test_seconds() -> None:
    # 6 operations take 0.6 s, the pass 0.5 s, 28 MB in memory 0.028 s, the all-reduce of 4 MB 6 messages of 1.001 s.
    assert seconds(step_of("plain", JOB), JOB, SLOW) == pytest.approx(0.6 + 0.5 + 0.028 + 6 * 1.001)


def test_seconds_of_an_asynchronous_device() -> None:
    """The launches hide behind the operations or the other way round, and sending hides behind the backward pass."""
    fast = Hardware(1e9, 1e9, 0.5, Link(0.0, 1e7), LINK, 4, asynchronous=True)
    sending = 6 * 1e6 / 1e7  # 0.6 s, of which the backward pass hides 0.4 s
    assert seconds(step_of("plain", JOB), JOB, fast) == pytest.approx(0.6 + 0.028 + sending - 0.4)
    shown = 6 * 80 / 4 / 1e7
    assert seconds(step_of("per_task", JOB), JOB, fast) == pytest.approx(10 * 0.5 + 0.148 + sending + shown)


def test_amortised() -> None:
    assert amortised(2.0, 1.0) == pytest.approx(1.2)
    assert amortised(2.0, 1.0, 10) == pytest.approx(1.1)


def test_methods() -> None:
    assert set(FSDP2) < set(REPLICAS) and next(iter(REPLICAS)) == "plain"
    assert math.isinf(SLOW.memory)
