"""One backward pass of the weighted loss."""

from __future__ import annotations

import torch

from cats.engines.losses import TaskLosses
from cats.engines.weighted import weighted_backward
from tests.engines.common import params_of


def test_weighted_backward_is_backward_of_the_weighted_sum():
    w, unused = params_of((3, 2), 2)
    outside = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    w.grad = torch.full_like(w, 5.0)
    z = w * outside
    losses = TaskLosses([0, 1], [z.sum(), lambda: w.square().sum()], ["a", "b"])
    values = weighted_backward(losses, [0.5, 2.0], [w, unused], scale=torch.tensor(4.0))
    torch.testing.assert_close(w.grad, 5 + 4 * (0.5 + 2 * 2 * w.detach()))
    assert [v.item() for v in values] == [w.sum().item(), w.square().sum().item()]
    assert unused.grad is None and outside.grad is None
