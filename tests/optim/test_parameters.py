"""Shared and private, tied, frozen and untouched parameters; parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import cats
import cats.accumulate
from tests.optim.common import TASKS, Heads, Quadratics, take_step


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_heads_stay_out_of_the_statistics(inner_steps):
    model, twin = Heads(), Heads()
    x = torch.randn(6, 5, dtype=torch.float64)
    optimizer = cats.CATS(
        torch.optim.SGD(model.parameters(), lr=0.1),
        TASKS,
        inner_steps=inner_steps,
        simplex="lagrangian",
        shared=model.trunk.parameters(),
    )
    take_step(optimizer, model.losses(x))
    sum(twin.losses(x).values()).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad, rtol=1e-12, atol=1e-13)
    if inner_steps == 1:
        trunk = list(twin.trunk.parameters())
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk, retain_graph=True)])
            for loss in twin.losses(x).values()
        ]
        gram = torch.stack(rows) @ torch.stack(rows).T
        statistics = optimizer.statistics
        np.testing.assert_allclose(list(statistics["dots"].values()), gram.sum(1), rtol=1e-12)
        np.testing.assert_allclose(list(statistics["sqnorms"].values()), gram.diagonal(), rtol=1e-12)
        assert statistics["sqnorm"] == pytest.approx(gram.sum().item(), rel=1e-12)


def test_tied_frozen_and_untouched_parameters():
    torch.manual_seed(0)
    embedding, output = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    output.weight = embedding.weight
    frozen, nobodys, only_az = (nn.Parameter(torch.ones(4)) for _ in range(3))
    frozen.requires_grad_(False)
    params = [embedding.weight, frozen, nobodys, only_az]
    optimizer = cats.CATS(torch.optim.AdamW(params, lr=0.1, weight_decay=0.1), ["az", "be"], inner_steps=2)

    def losses():
        logits = output(embedding(torch.tensor([1, 2])) * frozen)
        return {
            "az": (logits * only_az.sum()).logsumexp(-1).mean(),
            "be": lambda: output(embedding(torch.tensor([3]))).square().mean(),
        }

    for _step in range(2):  # a step without per-task gradients, then one with them
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        optimizer.backward(losses())
        assert nobodys.grad is None and frozen.grad is None
        expected = torch.autograd.grad(sum(v() if callable(v) else v for v in losses().values()) / 2, embedding.weight)
        torch.testing.assert_close(embedding.weight.grad, expected[0])
        assert (only_az.grad is not None) and (only_az.grad != 0).all()
        optimizer.step()
        assert torch.equal(frozen, before[1]) and torch.equal(nobodys, before[2])  # no weight decay either
        assert not torch.equal(embedding.weight, before[0])
    frozen.requires_grad_(True)
    for _ in range(2):
        take_step(optimizer, losses())
    assert not torch.equal(frozen, torch.ones(4))


def test_parameter_groups_and_layout():
    problem = Quadratics()
    base = torch.optim.SGD([{"params": [problem.weight], "lr": 0.1}, {"params": [problem.bias]}], lr=0.01)
    optimizer = cats.CATS(base, TASKS, inner_steps=1)
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    start = problem.theta
    gradient = torch.tensor(sum(problem.numpy_loss(problem.start, n)[1] for n in range(3)) / 3)
    take_step(optimizer, problem.losses())
    torch.testing.assert_close(problem.theta, start - torch.tensor([0.1] * 4 + [0.01] * 3) * gradient)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late], "lr": 1.0})
    assert base.param_groups[2]["params"] == [late]
    take_step(optimizer, [loss + late.sum() for loss in problem.losses()])
    torch.testing.assert_close(late.detach(), torch.zeros(2, dtype=torch.float64))  # Σα = 1
    assert min(optimizer.statistics["sqnorms"].values()) > 2  # the new parameter is shared: its gradient is (1, 1)

    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    conv_optimizer = cats.CATS(torch.optim.AdamW(conv.parameters(), fused=True), 2, inner_steps=1)
    y = conv(torch.ones(1, 2, 4, 4))
    conv_optimizer.backward([y.sum(), y.square().sum()])
    assert conv.weight.grad.stride() == conv.weight.stride()
