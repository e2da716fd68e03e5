"""The host's part of a call on a GPU, measured without one."""

from __future__ import annotations

import pytest
import torch

from bench.operators import host
from bench.operators.records import HostCall
from cats import ops
from cats.ops import dispatch


def test_calls_without_launches() -> None:
    before = ops.backends()["cuda"]
    (two, three) = host.calls(rounds=2, tasks=(2, 3), shapes=[[3, 4], [9000]])
    assert (two.tasks, three.tasks, two.tensors, two.chunks) == (2, 3, 2, 3)
    assert all(ms > 0 for ms in (two.first_ms, two.cpu_ms, two.wall_ms, two.reading_ms))
    assert ops.backends()["cuda"] == before  # nothing of it stays


def test_everything_but_the_launches_happens() -> None:
    grads = [[torch.ones(5), torch.ones(2, 3)] for _ in range(3)]
    with host.cuda_without_launches():
        assert dispatch.explain_default("cpu") == "cuda"
        combined, dots, sqnorms = ops.combine_dots(grads, [1.0, 2.0, 3.0])
        assert ops.gram(grads, backend="cuda").shape == (3, 3)
    assert [t.shape for t in combined] == [(5,), (2, 3)] and dots.shape == sqnorms.shape == (3,)


@pytest.mark.parametrize(("ms", "met"), [(0.29, True), (0.31, False)])
def test_targets(ms: float, met: bool) -> None:
    record = HostCall(tasks=8, tensors=253, chunks=1, first_ms=1.0, cpu_ms=ms, wall_ms=1.0, reading_ms=0.1)
    (target,) = host.evaluate([record, HostCall(3, 1, 1, 1.0, 1.0, 1.0, 1.0)])
    assert (target.value, target.met, target.worst) == (ms, met, "K=8")
