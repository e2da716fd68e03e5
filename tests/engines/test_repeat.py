"""Callables that an engine evaluates twice: the second time must give what the first gave, and leave no trace."""

from __future__ import annotations

import random
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from cats.engines import repeat
from cats.engines.forward_mode import ForwardMode
from cats.engines.losses import TaskLosses
from cats.engines.pending import UnsupportedError
from cats.engines.two_pass import TwoPass
from tests.engines.common import (
    IDS,
    WEIGHTS,
    Attention,
    Heads,
    K,
    Norms,
    by_task,
    check,
    data,
    expected,
    make,
    mixed,
    params_of,
    run,
    split_parameters,
)

engines = pytest.mark.parametrize("engine", [TwoPass, ForwardMode])
# How often a callable is evaluated in the first call: forward_mode compares its first dots with those of gradients.
EVALUATIONS = {TwoPass: 2, ForwardMode: 3}


@pytest.fixture(autouse=True)
def math_attention():
    """Fused attention, which forward_mode avoids, draws another dropout mask."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def callables(model):
    return [lambda n=n: model.loss(n) for n in range(K)]


@engines
@pytest.mark.parametrize("net", [Heads, Attention])
def test_losses_per_example(engine, net):
    model = make(net)

    def compute():
        return model.per_example(data(0, 6, 4), 1) if net is Heads else model.per_token()

    params, shared = split_parameters(model)
    torch.manual_seed(1)
    whole = compute()
    want = expected([whole[n == IDS].mean() for n in range(K)], params, shared)
    torch.manual_seed(1)
    check(want, *run(engine(), mixed(compute), params, shared), 1e-10)


@engines
@pytest.mark.parametrize("where", ["in the callable", "around backward", "around everything"])
def test_autocast(engine, where):
    def autocast(*places):
        return torch.autocast("cpu", torch.bfloat16) if where in places else nullcontext()

    def loss(n):
        with autocast("in the callable"):
            used.append(torch.is_autocast_enabled("cpu"))
            return model.loss(n)

    model = make(Attention, torch.float32)
    params, shared = split_parameters(model)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        want = expected(callables(model), params, shared)
    torch.manual_seed(1)
    used = []
    with autocast("around everything"):
        with autocast("around backward", "around everything"):
            losses = by_task([lambda n=n: loss(n) for n in range(K)])
            values, pending = engine().backward(losses, WEIGHTS, params, shared)
        dots, sqnorms = pending.dots([p.grad for p in params], last=True)
    assert used == [True] * (EVALUATIONS[engine] * K)
    check(want, values, params, dots, sqnorms, 0.02)  # bfloat16 rounds to 8 bits
    assert values == want.values


@engines
def test_float16_with_a_scale(engine):
    # Times the scale, ḡ fits into float16, as it must for any backward pass. Tangents of activations would not.
    model = make(Heads, torch.float32)
    params, shared = split_parameters(model)
    torch.manual_seed(1)
    want = expected(callables(model), params, shared)

    def half(n):
        with torch.autocast("cpu", torch.float16):
            return model.loss(n)

    torch.manual_seed(1)
    scale = torch.tensor(2.0**13)
    values, _, dots, sqnorms = run(engine(), [lambda n=n: half(n) for n in range(K)], params, shared, scale=scale)
    for p in params:
        p.grad = None if p.grad is None else p.grad / scale
    check(want, values, params, dots, sqnorms, 0.01)


@engines
def test_several_calls_and_one_direction(engine):
    model = make(Heads)
    params, shared = split_parameters(model)
    torch.manual_seed(1)
    want = expected(callables(model), params, shared)
    torch.manual_seed(1)
    instance = engine()
    calls = [
        instance.backward(TaskLosses([n], [loss], [f"task {n}"]), WEIGHTS, params, shared)
        for n, loss in enumerate(callables(model))
    ]
    dots = {}
    for _, pending in reversed(calls):
        dots |= pending.dots([p.grad for p in params], last=True)[0]
    values = [value for of_call, _ in calls for value in of_call]
    check(want, values, params, dots, None, 1e-10)


@engines
def test_sparse_gradients(engine):
    table = nn.Embedding(5, 3, sparse=True, dtype=torch.float64)
    losses = [lambda n=n: table(torch.tensor([n, n + 1, n])).exp().sum() for n in range(K)]
    params = [table.weight]
    want = expected(losses, params, 1)
    values, _, dots, sqnorms = run(engine(), losses, params, 1)
    assert table.weight.grad.is_sparse
    table.weight.grad = table.weight.grad.to_dense()
    check(want, values, params, dots, sqnorms, 1e-10)


@engines
def test_a_failure_leaves_no_trace(engine):
    model = make(Norms)
    params, shared = split_parameters(model)
    calls = []

    def loss(n):
        calls.append(n)
        with torch.no_grad():
            value = model.loss(n)
            torch.rand(3)
            if len(calls) == K + 2:
                raise KeyError("stop")
        return model.loss(n) + value

    losses = by_task([lambda n=n: loss(n) for n in range(K)])
    _, pending = engine(model=model).backward(losses, WEIGHTS, params, shared)
    state = [b.clone() for b in model.buffers()] + [torch.get_rng_state()] + [p.grad.clone() for p in params]
    with pytest.raises(KeyError):
        pending.dots([p.grad for p in params], last=True)
    now = [*model.buffers(), torch.get_rng_state(), *(p.grad for p in params)]
    assert all(map(torch.equal, now, state))
    assert torch.is_grad_enabled() and torch._C._is_fwd_grad_enabled() and not torch.is_autocast_enabled("cpu")
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(params[0]).tangent is None


@engines
def test_a_callable_that_computes_something_else(engine):
    (w,) = params_of(3)
    losses = [lambda: w.sum(), lambda: w.square().sum(), lambda: (w * (1 + random.random())).sum()]
    with pytest.raises(RuntimeError, match=r"loss of task 2: it was .* random numbers of Python"):
        run(engine(), losses, [w], 1)


@engines
def test_nonfinite_losses_are_not_compared(engine):
    (w,) = params_of(3)
    losses = [w.sum, lambda: w.sum() * float("inf"), lambda: w.sum() * float("nan")]
    _, _, dots, _ = run(engine(), losses, [w], 1)
    assert not any(v.isfinite() for v in dots.values())


@engines
def test_batch_norm_without_the_model_is_refused(engine):
    model = make(Norms)
    params, shared = split_parameters(model)
    with pytest.raises(UnsupportedError, match=r"loss of task 0.*running statistics.*pass model="):
        run(engine(), callables(model), params, shared)
    model.eval()
    run(engine(), callables(model), params, shared)
    untracked = nn.BatchNorm1d(4, track_running_stats=False).double()
    run(engine(), [lambda: untracked(data(0, 6, 4)).square().mean()] * K, list(untracked.parameters()), 2)


@engines
def test_one_graph_at_a_time(engine):
    (w,) = params_of(3)
    alive, seen = weakref.WeakSet(), []

    def loss():
        seen.append(len(alive))
        y = w.exp()  # the graph keeps y
        alive.add(y)
        return y.sum()

    run(engine(), [loss] * K, [w], 1)
    assert seen == [0] * (EVALUATIONS[engine] * K)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_random_numbers_of_devices(monkeypatch):
    class Device:
        """Stands for torch.cuda. The state of its generator counts the numbers drawn."""

        state = torch.tensor(5)

        def get_rng_state(self, device):
            assert device == gpu
            return self.state.clone()

        def set_rng_state(self, state, device):
            assert device == gpu
            self.state = state.clone()

    gpu, device = torch.device("cuda:1"), Device()
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    moment = repeat._Moment({gpu})
    device.state += 7
    with moment.restored():
        assert device.state == 5
        device.state += 1
    assert device.state == 12
