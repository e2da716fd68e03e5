"""Which losses are accepted, and how long their graphs live."""

from __future__ import annotations

import weakref

import pytest
import torch

from cats.engines.losses import TaskLosses, evaluate
from cats.engines.per_task import task_gradients
from cats.engines.weighted import weighted_backward
from tests.engines.common import params_of

alive: weakref.WeakSet = weakref.WeakSet()


class Probe(torch.autograd.Function):
    """The identity. It saves a tensor with the graph, so that `alive` shows which graphs exist."""

    @staticmethod
    def forward(ctx, x):
        token = x.clone()
        alive.add(token)
        ctx.token = token
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("form", ["weighted", "per task"])
def test_callables_keep_one_graph_alive(form):
    (w,) = params_of(3)
    seen = []

    def loss():
        seen.append(len(alive))
        return Probe.apply(w).square().sum()

    losses = TaskLosses([0, 1, 2], [loss] * 3, ["a", "b", "c"])
    if form == "weighted":
        weighted_backward(losses, [1.0, 2.0, 3.0], [w])
    else:
        task_gradients(losses, [w])
    assert seen == [0, 0, 0]


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (3.0, TypeError, "task 'az'.*float"),
        (lambda: "x", TypeError, "task 'az'.*str"),
        (torch.ones(2, requires_grad=True), ValueError, r"task 'az'.*\(2,\)"),
        (torch.tensor(1), ValueError, "int64"),
        (torch.tensor(1.0), ValueError, "does not require grad"),
    ],
)
def test_losses_that_are_refused(loss, error, match):
    with pytest.raises(error, match=match):
        evaluate(loss, "task 'az'")
