"""The workload: all ways to get the losses of the tasks give the same losses."""

from __future__ import annotations

import pytest
import torch

from bench.engines import oracle
from bench.engines.workload import Workload, cpu, eager, gpu

from .common import SMALL

CPU = torch.device("cpu")


@pytest.mark.parametrize("tasks", [1, 5])
def test_forms_of_the_losses_agree(tasks: int) -> None:
    work = Workload(SMALL, tasks, CPU, torch.float64)
    with oracle.comparable(work):
        together = torch.stack(work.task_losses())
        torch.testing.assert_close(together, torch.stack(work.task_losses(eager)))
        torch.testing.assert_close(together, torch.stack([loss() for loss in work.separate_losses().values()]))
        tokens = work.token_losses()
        by_id = [tokens[work.target_ids == n].mean() for n in range(tasks)]
        torch.testing.assert_close(together, torch.stack(by_id))
    assert work.model.training


def test_the_maps_of_rows_have_different_lengths() -> None:
    """Maps are found by their number of rows, so source, target and sentences must differ in it."""
    for size in (SMALL, *cpu()):
        work = Workload(size, 2, CPU)
        assert len({len(work.source_ids), len(work.target_ids), len(work.sentence_ids)}) == 3


def test_presets_for_a_gpu() -> None:
    assert [(size.name, size.model.d_model, size.precision) for size in gpu()] == [
        ("ted", 512, "bf16"),
        ("base", 512, "bf16"),
    ]
    assert all(size.sentences * sum(size.lengths) / 2 == pytest.approx(32_000, rel=0.01) for size in gpu())


def test_a_wrong_v_and_a_wrong_gradient_are_refused() -> None:
    right = oracle.expected(SMALL, 3, CPU)
    work = Workload(SMALL, 3, CPU)
    with oracle.comparable(work):
        work.plain_step()
    assert oracle.check(work, None, right, False) == 0.0
    assert oracle.check(work, right.v * 1.0001, right, False) == pytest.approx(1e-4)
    with pytest.raises(oracle.Wrong, match=r"v is wrong by 1\.0e-02"):
        oracle.check(work, right.v * 1.01, right, False)
    with pytest.raises(oracle.Wrong, match=r"v is wrong by nan"):
        oracle.check(work, right.v * torch.nan, right, True)
    with pytest.raises(oracle.Wrong, match="v has shape"):
        oracle.check(work, right.v[:2], right, False)
    work.model.encoder_norm.weight.grad = None
    with pytest.raises(oracle.Wrong, match="ḡ is wrong"):
        oracle.check(work, right.v, right, False)
