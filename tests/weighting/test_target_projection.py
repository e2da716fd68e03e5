"""Target gradient projection: the same as on the gradients themselves, and none moves against the trusted one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import cats
from cats.weighting import TargetProjection
from tests.weighting.common import Net, gradients, weights_of


def projected(g, trusted):
    """g, or its projection on the normal plane of the trusted gradient."""
    return g - min(g @ trusted, 0.0) / (trusted @ trusted) * trusted if trusted.any() else g


@settings(max_examples=60, deadline=None)
@given(gradients(tasks=(2, 6)))
def test_no_task_moves_against_the_trusted_gradient(rows):
    for trusted in 0, [0, len(rows) - 1] if len(rows) > 2 else 0:
        weights = weights_of(TargetProjection(trusted), rows)
        assert np.isfinite(weights).all() and (weights >= 0).all()
        oracle = rows[trusted] if trusted == 0 else rows[trusted].sum(0)
        combined = weights @ rows
        sizes = np.linalg.norm(rows, axis=1)
        assert combined @ oracle >= -1e-9 * sizes.sum() * sizes[trusted].sum()
        assert weights_of(TargetProjection(trusted), rows, scale=2.0**80).tolist() == weights.tolist()


@pytest.mark.parametrize("groups", [None, "layer"])
def test_gradients_of_a_network(groups):
    net = Net(tasks=4)
    weighting = TargetProjection({"az": "az dev", "be": "be dev"}, groups)
    tasks = ["az", "az dev", "be dev", "be"]
    optimizer = cats.MultiTask(torch.optim.SGD(net.parameters(), lr=0.1), tasks, weighting, model=net)
    conflicts = 0
    for present in [tasks, ["az", "be"], ["az", "az dev", "be"], tasks, tasks]:
        rows = dict(zip(tasks, net.gradients(), strict=True))
        wanted = np.zeros(34)
        for part in [slice(0, 24), slice(24, 34)] if groups else [slice(0, 34)]:
            for name in "az", "be":
                g, trusted = rows[name][part], rows[f"{name} dev"][part]
                there = f"{name} dev" in present
                conflicts += bool(there and g @ trusted < 0)
                wanted[part] += projected(g, trusted) if there else g
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        optimizer.zero_grad()
        optimizer.backward({name: net.loss(tasks.index(name)) for name in present})
        optimizer.step()
        moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
        np.testing.assert_allclose(moved, -0.1 * wanted, rtol=1e-9, atol=1e-12)
    assert conflicts


def test_without_a_conflict_the_trusted_task_is_not_trained():
    weights = weights_of(TargetProjection(2), np.array([[1.0, 0], [0, 1], [1, 1]]))
    assert weights.tolist() == [1, 1, 0]
    against = weights_of(TargetProjection(2), np.array([[1.0, 0], [0, 1], [-1, 0.0]]))
    assert against.tolist() == [1, 1, 1]  # [1, 0] is cancelled


def test_trusted_gradients_that_cancel_each_other():
    rows = np.array([[1.0, 0], [0.3, 0.7], [-0.3, -0.7]])
    assert weights_of(TargetProjection([1, 2]), rows).tolist() == [1, 0, 0]


def test_a_trusted_task_that_is_named_twice_counts_once():
    rows = np.array([[1.0, 0], [0, 1], [-1, 0.0]])
    assert weights_of(TargetProjection([2, 2]), rows).tolist() == [1, 1, 1]


def test_names():
    base = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    for wrong, message in [
        ("cs", "unknown task 'cs'"),
        ({"az": "cs"}, "unknown task 'cs'"),
        (["az", "be"], "at least one trusted task and one to train"),
        ([], "at least one trusted task"),
        ({"az": "be", "be": "az"}, "'az' is both trained and trusted"),
    ]:
        with pytest.raises(ValueError, match=message):
            cats.MultiTask(base, ["az", "be"], TargetProjection(wrong))
