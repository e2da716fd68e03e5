"""The engine two_pass against one gradient per task. See test_repeat.py too."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cats.engines import autograd, two_pass
from cats.engines.two_pass import TwoPass
from tests.engines.common import (
    IDS,
    NETS,
    WEIGHTS,
    Attention,
    K,
    by_task,
    check,
    expected,
    make,
    mixed,
    params_of,
    run,
    split_parameters,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", ["callables", "tensors"])
@pytest.mark.parametrize("net", NETS)
def test_agrees_with_per_task(net, form, dtype):
    def losses(model):
        torch.manual_seed(1)
        return [model.loss(n) if form == "tensors" else lambda n=n: model.loss(n) for n in range(K)]

    twin = make(net, dtype)
    want = expected(losses(twin), *split_parameters(twin))
    after = torch.get_rng_state()
    model = make(net, dtype)
    params, shared = split_parameters(model)
    check(want, *run(TwoPass(model=model), losses(model), params, shared), 1e-10 if dtype == torch.float64 else 1e-5)
    assert torch.equal(torch.get_rng_state(), after)
    for buffer, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other)


def test_tensors_that_share_a_graph_and_a_callable():
    w, head_a, head_b = params_of((4, 3), 4, 4)

    def losses():
        z = torch.tanh(w @ torch.arange(3.0, dtype=torch.float64))
        return [(z * head_a).sum(), lambda: w.square().sum(), (z * head_b).square().sum()]

    want = expected(losses(), [w, head_a, head_b], 1)
    kept = losses()
    check(want, *run(TwoPass(), kept, [w, head_a, head_b], 1), 1e-10)
    with pytest.raises(RuntimeError, match="second time"):  # the last backward pass has freed the graph
        kept[2].backward()


def test_dots_that_are_not_the_last():
    (w,) = params_of(3)
    losses = [w.exp().sum(), w.exp().square().sum(), lambda: w.exp().sum()]
    _, pending = TwoPass().backward(by_task(losses), WEIGHTS, [w], 1)
    first, _ = pending.dots([w.grad], last=False)
    second, _ = pending.dots([2 * w.grad], last=True)
    assert all(second[n] == 2 * first[n] for n in range(K))


def test_a_tensor_of_losses_per_token():
    model = make(Attention)
    params, shared = split_parameters(model)
    torch.manual_seed(1)
    losses = model.per_token()
    want = expected([losses[n == IDS].mean() for n in range(K)], params, shared)
    torch.manual_seed(1)
    check(want, *run(TwoPass(), mixed(model.per_token()), params, shared), 1e-10)


@pytest.mark.parametrize("form", ["callables", "tensors"])
def test_reentrant_checkpoints(form):
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4).double(), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh()).double()
    x = torch.randn(K, 5, 3, dtype=torch.float64)
    params = [*first.parameters(), *second.parameters()]

    def losses():
        torch.manual_seed(1)
        lazy = [lambda n=n: checkpoint(second, first(x[n]), use_reentrant=True).square().mean() for n in range(K)]
        return lazy if form == "callables" else [loss() for loss in lazy]

    want = expected(losses(), params, 3)
    check(want, *run(TwoPass(), losses(), params, 3), 1e-10)


def test_one_gradient_at_a_time(monkeypatch):
    (w,) = params_of(3)
    alive = weakref.WeakSet()

    def gradient(*arguments, **options):
        assert not alive
        result = autograd.gradient(*arguments, **options)
        alive.update(result)
        return result

    monkeypatch.setattr(two_pass, "gradient", gradient)
    run(TwoPass(), [w.exp().sum(), w.exp().sum(), lambda: w.exp().sum()], [w], 1)


@pytest.mark.slow
def test_a_compiled_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))
    compiled, x, params = torch.compile(model), torch.randn(K, 5, 4), list(model.parameters())
    losses = [lambda n=n: compiled(x[n]).square().mean() for n in range(K)]
    torch.manual_seed(1)
    want = expected(losses, params, len(params))
    torch.manual_seed(1)
    check(want, *run(TwoPass(), losses, params, len(params)), 1e-5)
    with pytest.raises(RuntimeError, match=r"losses given as tensors: torch.compile lets the backward pass.*callable"):
        run(TwoPass(), [loss() for loss in losses], params, len(params))
