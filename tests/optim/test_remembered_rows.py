"""What the engine one_pass remembers of one step must not make the numbers of another step wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cats
from cats.engines.one_pass import plan, probe
from cats.engines.one_pass.graph import find_uses

K = 2


def optimizer(model, engine="one_pass", **settings):
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    return cats.CATS(base, K, inner_steps=1, strength=0.0, engine=engine, **settings)


def linear(*sizes):
    torch.manual_seed(sum(sizes))
    return nn.Linear(*sizes).double()


def assert_right(opt, model, losses, ids, call):
    """One step, compared with gradients task by task."""
    loss, expected = losses(), []
    params = [p for p in model.parameters() if p.requires_grad]
    for n in range(K):
        expected.append(torch.autograd.grad(loss[ids == n].mean(), params, retain_graph=True))
    combined = [sum(g) for g in zip(*expected, strict=True)]
    opt.zero_grad()
    call()
    opt.step()
    dots = [sum((a * b).sum().item() for a, b in zip(g, combined, strict=True)) / K for g in expected]
    assert list(opt.statistics["dots"].values()) == pytest.approx(dots, rel=1e-9)


def test_an_order_that_fitted_by_chance():
    """The model sorts its rows. In the first batch they are sorted already."""
    model = nn.ModuleList([linear(3, 4), linear(4, 1)])
    ids, opt = torch.tensor([0, 0, 1, 1]), optimizer(model)
    for step in range(8):
        x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        order = torch.arange(4) if step == 0 else torch.randperm(4, generator=torch.Generator().manual_seed(step))

        def losses(x=x, order=order):
            h = torch.tanh(model[0](x[order]))
            return model[1](h)[:, 0][order.argsort()].square()

        assert_right(opt, model, losses, ids, lambda losses=losses: opt.backward(losses(), tasks=ids))


def test_layers_that_are_frozen_and_trained_again():
    """Two layers have the examples in the second dimension, the third in the first. Both dimensions have 4."""
    model = nn.ModuleList([linear(3, 4), linear(4, 4), linear(4, 1)])
    ids, opt = torch.tensor([0, 1, 1, 0]), optimizer(model)
    x = torch.randn(4, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def losses():
        h = torch.tanh(model[1](torch.tanh(model[0](x.transpose(0, 1).contiguous()))))
        return model[2](h.transpose(0, 1).contiguous())[..., 0].square().mean(1)

    for step in range(9):
        for p in model[0].parameters():
            p.requires_grad_(not 3 <= step < 6)
        assert_right(opt, model, losses, ids, lambda: opt.backward(losses(), tasks=ids))


def test_rows_that_were_left_by_a_forward_pass_without_backward():
    model, ids, inner = linear(3, 1), torch.tensor([0, 1]), torch.tensor([0, 0, 0, 1, 1])
    opt = optimizer(model)
    for step in range(6):
        x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))

        def losses(x=x):
            return torch.zeros(2, dtype=torch.float64).index_add(0, inner, model(x)[:, 0].square())

        def call(losses=losses, step=step):
            if step == 4:  # a call in which nothing is checked otherwise
                cats.engines.rows(inner.flip(0))  # the batch of this one was skipped
            with cats.engines.rows(inner):
                opt.backward(losses(), tasks=ids)

        assert_right(opt, model, losses, ids, call)


def test_a_refusal_in_the_second_of_three_calls():
    """The numbers of the step are unknown then; those of the third call alone would be wrong."""
    model = nn.Sequential(linear(3, 3), nn.BatchNorm1d(3, affine=False).double(), linear(3, 1))
    opt = optimizer(model, engine="auto")
    x, ids = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    for training in (False, True, False):
        model.train(training)
        opt.backward(model(x)[:, 0].square(), tasks=ids)
    opt.step()
    assert opt.statistics["dots"] == {} and opt.statistics["step"] == 1


def test_gradients_that_cancel_are_no_missed_parameter():
    """At a Pareto point ‖ḡ‖² is only rounding error, so it says nothing about <g_n, ḡ>."""
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    base = torch.optim.Adam(model.parameters(), lr=0.05)
    opt = cats.CATS(base, K, inner_steps=1, strength=0.0, engine="one_pass")
    x, ids = torch.randn(8, 5), torch.tensor([0, 1]).repeat_interleave(8)
    y = torch.stack([x.sum(1), -x.sum(1)]).flatten()
    for _ in range(400):  # it is checked in calls 64, 100, 200, 300 and 400
        opt.zero_grad()
        opt.backward((model(x.repeat(2, 1))[:, 0] - y).square(), tasks=ids)
        opt.step()
    assert opt.statistics["skipped"] == 0


def test_an_infinite_gradient_of_a_finite_loss_is_skipped():
    model = nn.Sequential(linear(3, 4), nn.Tanh(), linear(4, 2))
    opt = optimizer(model)
    x = torch.randn(4, 3, dtype=torch.float64)
    y = model(x).detach()
    y[1:] += 1.0
    opt.backward((model(x) - y).square().mean(1).sqrt(), tasks=torch.tensor([0, 0, 1, 1]))
    opt.step()
    assert opt.statistics["skipped"] == 1 and opt.statistics["engine"] == "one_pass"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_shows_nothing(bad, monkeypatch):
    """0 · nan is nan: then every row seems to belong to all tasks. Later steps must not check again for that reason."""
    passes = []

    def counted(*arguments, only=None, **options):
        passes.append("one" if only is not None else "all")
        return probe.masked_gradients_show(*arguments, only=only, **options)

    monkeypatch.setattr(plan, "masked_gradients_show", counted)
    seen = []
    for first in (1.0, bad):
        torch.manual_seed(0)
        model = nn.Sequential(linear(3, 4), nn.Tanh(), linear(4, 4), Scaled(), linear(4, 1))
        opt, ids = optimizer(model), torch.tensor([0, 1, 1, 0])
        passes.clear()
        for step in range(6):
            x = torch.randn(4, 3, dtype=torch.float64)
            x[1] *= first if step == 0 else 1.0
            opt.zero_grad()
            opt.backward(model(x)[:, 0].square(), tasks=ids)
            opt.step()
        seen.append(list(passes))
    assert opt.statistics["skipped"] == 1
    assert seen[0] == ["all", "one", "one"]  # in steps 1, 2 and 4
    assert seen[1] == ["all", "all", "one"]  # step 2 checks what step 1 could not


class Scaled(nn.Module):
    """A parameter that is used by itself first: such a use has no rows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        return x * self.scale.exp()


def test_float16_gradients_whose_sum_is_too_large_show_the_rows():
    model = linear(2, 2)
    use, *_ = find_uses([model(torch.ones(2, 2, dtype=torch.float64)).sum()], list(model.parameters())).uses
    evidence = probe._Evidence(use, (2,))
    evidence.add(torch.full((2, 2), 6e4, dtype=torch.float16), 0)
    assert evidence.finite
    evidence.add(torch.full((2, 2), float("inf"), dtype=torch.float16), 1)
    assert not evidence.finite


def test_small_shares_of_a_float16_loss():
    """1 / 8 of 1e-6 is too small for float16, but not with the factor of the GradScaler."""
    w = nn.Parameter(torch.ones(8, dtype=torch.float16))
    opt = cats.MultiTask(torch.optim.SGD([w], lr=0.0), K, cats.weighting.Static([1e-6, 1e-6]))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    opt.backward(w * 1.0, tasks=torch.zeros(8, dtype=torch.int64), scaler=scaler)
    torch.testing.assert_close(w.grad.float(), torch.full((8,), 1e-6 / 8 * 2**16), rtol=1e-3, atol=0)
