"""Objects that stand for the optimizer: proxies that copy or forward its attributes, shallow copies, other threads."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import cats
from tests.optim.common import TASKS, Heads, Quadratics, RunningNorm, same, take_step


class Copied:
    """As Lightning 2.0 did it: a subclass made on the fly, with a copy of the attributes."""

    def __init__(self, optimizer):
        self.__dict__ = {name: value for name, value in optimizer.__dict__.items() if name != "step"}
        self.__class__ = type("Copied" + type(optimizer).__name__, (Copied, type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure=None):
        return self._optimizer.step(closure)


class LookedUp:
    """As Lightning does it now: a subclass made on the fly, which looks attributes up in the optimizer."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("LookedUp" + type(optimizer).__name__, (LookedUp, type(optimizer)), {})

    def step(self, closure=None):
        return self._optimizer.step(closure)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


STAND_INS = {"copied": Copied, "looked up": LookedUp, "shallow copy": copy.copy}


def build(problem, weighting):
    base = torch.optim.Adam(problem.params, lr=0.1)
    if weighting == "gram":
        return cats.MultiTask(base, TASKS, RunningNorm())
    return cats.CATS(base, TASKS, inner_steps=2, loss_term=True)


@pytest.mark.parametrize("weighting", ["cats", "gram"])
@pytest.mark.parametrize("stand_in", STAND_INS)
def test_a_cycle_may_use_the_optimizer_and_what_stands_for_it(stand_in, weighting):
    problem, plain = Quadratics(), Quadratics()
    optimizer, reference = build(problem, weighting), build(plain, weighting)
    proxy = STAND_INS[stand_in](optimizer)
    assert isinstance(proxy, torch.optim.Optimizer)
    for t in range(8):
        one, other = (optimizer, proxy) if t % 3 else (proxy, optimizer)
        one.zero_grad()
        one.backward([loss / 4 for loss in problem.losses()])
        other.backward([loss * 0.75 for loss in problem.losses()])
        one.step()
        with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
            other.step()
        reference.zero_grad()
        reference.backward([loss / 4 for loss in plain.losses()])
        reference.backward([loss * 0.75 for loss in plain.losses()])
        reference.step()
        assert torch.equal(problem.theta, plain.theta)
    for each in (optimizer, proxy):
        assert same(each.alpha, reference.alpha) and same(each.statistics, reference.statistics)
        assert same(each.state_dict(), reference.state_dict())
    proxy.backward(problem.losses())
    proxy.zero_grad(set_to_none=False)  # discards the gradients for both
    optimizer.backward(problem.losses())
    optimizer.step()
    take_step(reference, plain.losses())
    assert torch.equal(problem.theta, plain.theta)


@pytest.mark.parametrize("stand_in", STAND_INS)
def test_a_state_loaded_through_a_proxy_is_the_optimizers(stand_in):
    problem, plain = Quadratics(), Quadratics()
    optimizer, reference = build(problem, "cats"), build(plain, "cats")
    for _ in range(4):
        take_step(reference, plain.losses())
    STAND_INS[stand_in](optimizer).load_state_dict(reference.state_dict())
    assert same(optimizer.statistics, reference.statistics) and same(optimizer.alpha, reference.alpha)


@pytest.mark.parametrize("stand_in", STAND_INS)
def test_grad_scaler_may_be_given_a_proxy(stand_in):
    problem, plain = Quadratics(dtype=torch.float32), Quadratics(dtype=torch.float32)
    optimizer, reference = build(problem, "cats"), build(plain, "cats")
    proxy = STAND_INS[stand_in](optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(4):
        proxy.zero_grad()
        proxy.backward(problem.losses(), scaler=scaler)
        scaler.step(proxy)
        scaler.update()
        take_step(reference, plain.losses())
        assert torch.equal(problem.theta, plain.theta)
        assert not hasattr(optimizer, "found_inf") and not hasattr(proxy, "grad_scale")


def test_lightnings_own_proxy():
    proxy_of = pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer
    problem, plain = Quadratics(), Quadratics()
    optimizer, reference = build(problem, "cats"), build(plain, "cats")
    proxy = proxy_of(optimizer)
    for _ in range(4):
        proxy.zero_grad()
        proxy.backward(problem.losses())
        optimizer.step()
        take_step(reference, plain.losses())
        assert torch.equal(problem.theta, plain.theta)
    assert proxy.alpha == optimizer.alpha == reference.alpha


def test_a_deep_copy_of_a_used_optimizer_is_independent():
    problem = Quadratics()
    optimizer = build(problem, "cats")
    take_step(optimizer, problem.losses())
    twin, other = copy.deepcopy((problem, optimizer))
    take_step(other, twin.losses())
    assert (optimizer.statistics["step"], other.statistics["step"]) == (1, 2)


def test_attributes_of_the_base():
    class ScheduleFree(torch.optim.SGD):
        training = True

        def eval(self):
            self.training = False

    optimizer = cats.CATS(ScheduleFree(Quadratics().params, lr=0.1), TASKS)
    assert optimizer.training
    optimizer.eval()
    assert not optimizer.base.training and not optimizer.training
    assert not hasattr(optimizer, "train") and not hasattr(optimizer, "_private")
    with pytest.raises(AttributeError, match="'ScheduleFree' object has no attribute 'train'"):
        optimizer.train()
    assert not hasattr(type(optimizer).__new__(type(optimizer)), "eval")  # before there is a base


def test_threads_share_one_cycle():
    model, alone = Heads(), Heads()
    optimizer, reference = (
        cats.CATS(torch.optim.SGD(m.parameters(), lr=0.1), TASKS, inner_steps=1) for m in (model, alone)
    )
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
    inside = threading.Event()

    def first():
        # If the other thread could start its backward() during this one, both would open a cycle of their own.
        threading.Thread(target=second).start()
        inside.wait(timeout=0.2)
        return model.losses(x)["az"]

    def second():
        optimizer.backward({"be": lambda: inside.set() or model.losses(x)["be"]})
        done.set()

    done = threading.Event()
    optimizer.backward({"az": first})
    assert done.wait(timeout=60)
    optimizer.step()
    take_step(reference, {task: alone.losses(x)[task] for task in ("az", "be")})
    assert optimizer.statistics["losses"] == pytest.approx(reference.statistics["losses"])
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # float64: the order of the sums may differ
