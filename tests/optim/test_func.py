"""Losses that use torch.func: derivatives inside a loss, and a model called as a function of its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cats
from tests.optim.common import take_step


@pytest.mark.parametrize("engine", ["per_task", "two_pass"])
def test_losses_of_derivatives_by_torch_func(engine):
    """As in physics-informed networks: u'' of each example by grad and vmap, of a model called by functional_call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x = torch.linspace(0, 1, 5, dtype=torch.float64)

    def losses(plain=False):
        def u(at):
            return torch.func.functional_call(model, dict(model.named_parameters()), (at[None],))[0]

        if plain:
            at = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(at[:, None]).sum(), at, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), at, create_graph=True)
        else:
            bend = torch.func.vmap(torch.func.grad(torch.func.grad(u)))(x)
        return {"equation": (bend + 1).square().mean(), "boundary": u(x[0]).square() + u(x[-1]).square()}

    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = cats.CATS(base, ["equation", "boundary"], inner_steps=1, engine=engine)
    take_step(optimizer, losses() if engine == "per_task" else {t: lambda t=t: losses()[t] for t in losses()})
    rows = []
    for loss in losses(plain=True).values():
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    combined = (rows[0] + rows[1]) / 2
    expected = {"equation": (rows[0] @ combined).item(), "boundary": (rows[1] @ combined).item()}
    assert optimizer.statistics["dots"] == pytest.approx(expected, rel=1e-10)  # float64: derivatives in another order
