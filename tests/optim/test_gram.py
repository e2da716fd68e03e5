"""Weightings that need the Gram matrix of the step."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import cats
import cats.accumulate
from tests.optim.common import TASKS, Heads, Quadratics, RunningNorm, same, take_step


def test_gram_weighting_step_by_step():
    problem = Quadratics()
    rule = RunningNorm()
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, rule)
    theta, mean = problem.start.copy(), None
    for _ in range(5):
        assert optimizer.needs_task_gradients
        rows = np.array([problem.numpy_loss(theta, n)[1] for n in range(3)])
        gram = rows @ rows.T
        mean = np.diag(gram) if mean is None else (mean + np.diag(gram)) / 2
        w = 1 / mean + 0.01 * np.tanh(gram.sum(1))
        theta = theta - 0.05 * w @ rows
        take_step(optimizer, problem.losses())
        np.testing.assert_allclose(problem.theta, theta, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(list(optimizer.alpha.values()), w, rtol=1e-11)
        np.testing.assert_allclose(list(optimizer.statistics["dots"].values()), gram @ w, rtol=1e-11)
        np.testing.assert_allclose(list(optimizer.statistics["sqnorms"].values()), np.diag(gram), rtol=1e-11)
        assert optimizer.statistics["sqnorm"] == pytest.approx(w @ gram @ w)


def test_gram_weighting_accumulates_and_resumes():
    whole, parts, resumed = (Quadratics() for _ in range(3))
    one, many = (cats.MultiTask(torch.optim.SGD(p.params, lr=0.05), TASKS, RunningNorm()) for p in (whole, parts))
    for _ in range(4):
        take_step(one, whole.losses())
        for shift in (1.0, 0.0):  # the first is discarded: it must not change the rule's state
            many.zero_grad()
            for w in (0.25, 0.75):
                many.backward([w * loss for loss in parts.losses(shift=shift)])
        many.step()
        torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-12, atol=1e-13)
    other = cats.MultiTask(torch.optim.SGD(resumed.params, lr=0.05), TASKS, RunningNorm())
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(other.alpha, one.alpha)
    with torch.no_grad():
        for p, q in zip(resumed.params, whole.params, strict=True):
            p.copy_(q)
    take_step(one, whole.losses())
    take_step(other, resumed.losses())
    assert torch.equal(whole.theta, resumed.theta)


def test_gram_weighting_of_shared_parameters_with_heads_and_scaler():
    model = Heads().float()
    x = torch.randn(6, 5)
    seen = []
    optimizer = cats.MultiTask(
        torch.optim.SGD(model.parameters(), lr=0.1),
        TASKS,
        lambda gram: seen.append(gram) or torch.tensor([1.0, 2.0, 3.0]),
        shared=model.trunk.parameters(),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trunk = list(model.trunk.parameters())
    rows = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in model.losses(x).values()]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    head = model.heads[1].bias.detach().clone()
    (slope,) = torch.autograd.grad(model.losses(x)["be"], model.heads[1].bias)
    optimizer.backward(model.losses(x), scaler=scaler)
    scaler.step(optimizer)
    torch.testing.assert_close(seen[0], rows @ rows.T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model.heads[1].bias.detach(), head - 0.1 * 2 * slope)


def test_weights_of_the_wrong_length():
    problem = Quadratics()
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.1), TASKS, lambda gram: torch.ones(2))
    with pytest.raises(ValueError, match=r"\(2,\) for 3 tasks"):
        optimizer.backward(problem.losses())


@pytest.mark.parametrize("name", ["MeanWeighting", "MGDAWeighting", "PCGradWeighting", "AlignedMTLWeighting"])
def test_torchjd_weightings(name):
    aggregation = pytest.importorskip("torchjd.aggregation")
    problem = Quadratics()
    rule = getattr(aggregation, name)()
    torch.manual_seed(0)
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, rule)
    rows = torch.tensor(np.array([problem.numpy_loss(problem.start, n)[1] for n in range(3)]))
    take_step(optimizer, problem.losses())
    torch.manual_seed(0)
    expected = getattr(aggregation, name)()(rows @ rows.T)
    torch.testing.assert_close(torch.tensor(list(optimizer.alpha.values())).double(), expected.double())
    moved = torch.tensor(problem.start) - 0.05 * expected.double() @ rows
    torch.testing.assert_close(problem.theta, moved, rtol=1e-10, atol=1e-11)
    optimizer.load_state_dict(optimizer.state_dict())
