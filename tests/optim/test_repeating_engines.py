"""The engines two_pass and forward_mode inside the optimizer: the numbers of per_task, step by step."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import cats
from cats import distributed
from cats.engines import choose

TASKS = ["az", "be", "gl"]
ENGINES = ["two_pass", "forward_mode"]
engines = pytest.mark.parametrize("engine", ENGINES)


class Net(nn.Module):
    """Dropout, batch norm, and private heads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 4))
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.double()

    def loss(self, task, seed):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (self.heads[task](self.trunk(x).tanh()) - x.sum(1, keepdim=True)).square().mean()


def train(engine, *, form="callables", calls=1, steps=4, scaler=None, **settings):
    """Losses, dots, norms and weights of each step, the model, the optimizer, and the state of the random numbers."""
    model = Net()
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    shared = model.trunk.parameters()
    opt = cats.CATS(base, TASKS, inner_steps=2, alpha_lr=0.5, engine=engine, model=model, shared=shared, **settings)
    torch.manual_seed(1)
    seen = []
    for step in range(steps):
        opt.zero_grad()
        for call in range(calls):
            present = TASKS[: 2 + call]
            losses = {t: lambda t=t, s=10 * step + call: model.loss(t, s) for t in present}
            if form == "tensors":
                losses = {t: loss() for t, loss in losses.items()}
            opt.backward(losses, scaler=scaler)
        if scaler is None:
            opt.step()
        else:
            scaler.step(opt)
            scaler.update()
        seen.append({name: dict(opt.statistics[name]) for name in ("losses", "dots", "sqnorms")} | {"w": opt.alpha})
    return seen, model, opt, torch.get_rng_state()


def assert_same(seen, expected, *, norms):
    for a, b in zip(seen, expected, strict=True):
        for name in ("losses", "dots", "w") + ("sqnorms",) * norms:
            assert a[name] == pytest.approx(b[name], rel=1e-9, abs=1e-12), name


@engines
@pytest.mark.parametrize("calls", [1, 2])
def test_training_is_that_of_per_task(engine, calls):
    expected, twin, _, state = train("per_task", calls=calls)
    seen, model, opt, after = train(engine, calls=calls)
    assert_same(seen, expected, norms=engine == "two_pass" and calls == 1)
    for name, value in model.state_dict().items():  # parameters and running statistics
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-10, atol=1e-12)
    assert torch.equal(after, state)
    assert opt.statistics["engine"] == engine and opt.statistics["engine_reason"] == "asked for"
    assert opt.statistics["task_gradient_steps"] == 2


@pytest.mark.parametrize("calls", [1, 2])
def test_two_pass_with_tensors(calls):
    expected, twin, _, _ = train("per_task", form="tensors", calls=calls)
    seen, model, _, _ = train("two_pass", form="tensors", calls=calls)
    assert_same(seen, expected, norms=calls == 1)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-10, atol=1e-12)


@engines
def test_scaler(engine):
    expected, _, _, _ = train("per_task")
    seen, _, _, _ = train(engine, scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
    assert_same(seen, expected, norms=False)


@engines
def test_a_failure_in_the_second_evaluation(engine):
    model = Net()
    opt = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS, inner_steps=1, engine=engine, model=model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    calls = []

    def loss():
        calls.append(0)
        if len(calls) == 2:
            raise KeyError("stop")
        return model.loss("az", 0)

    with pytest.raises(KeyError):
        opt.backward({"az": loss, "be": lambda: model.loss("be", 1)})
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    opt.backward({"az": loss, "be": lambda: model.loss("be", 1)})
    opt.step()
    assert set(opt.statistics["dots"]) == {"az", "be"}


def test_forward_mode_refuses_tensors():
    with pytest.raises(RuntimeError, match=r"engine forward_mode: loss of task 'az'.*pass callables"):
        train("forward_mode", form="tensors", steps=2)


def test_auto_takes_two_pass_if_the_gradients_would_fill_the_memory(monkeypatch, caplog):
    expected, _, opt, _ = train("auto")
    assert opt.statistics["engine"] == "per_task"
    monkeypatch.setattr(choose, "free_memory", lambda device: 1000)
    with caplog.at_level(logging.INFO, "cats"):
        seen, _, opt, _ = train("auto")
    assert_same(seen, expected, norms=True)
    assert (
        opt.statistics["engine"] == "two_pass"
        and "more than half of the free memory" in opt.statistics["engine_reason"]
    )
    assert len(caplog.records) == 1 and caplog.records[0].message.startswith("engine two_pass: 2 gradients take")


def test_auto_falls_back_if_a_callable_cannot_be_repeated(monkeypatch):
    monkeypatch.setattr(choose, "free_memory", lambda device: 20)
    w, calls = nn.Parameter(torch.ones(3)), []

    def loss():
        calls.append(0)
        return (w * len(calls)).sum()

    opt = cats.CATS(torch.optim.SGD([w], lr=0.1), 1, inner_steps=1)
    opt.backward([loss])
    opt.step()
    assert opt.statistics["engine"] == "per_task" and "two_pass was refused" in opt.statistics["engine_reason"]
    assert opt.statistics["dots"] == {0: pytest.approx(3 * len(calls) ** 2)}


@engines
def test_wrapped_models_are_refused(engine, monkeypatch):
    monkeypatch.setattr(distributed.Local, "whole_backward", True)
    with pytest.raises(RuntimeError, match=f"engine {engine}: the model is wrapped in DistributedDataParallel"):
        train(engine, steps=2)


def test_free_memory():
    assert choose.free_memory(torch.device("cpu")) > 2**20
