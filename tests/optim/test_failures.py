"""A backward() or step() that fails or is interrupted leaves everything as it was before it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed as dist

import cats
from cats import distributed
from tests.optim.common import TASKS, Quadratics, RunningNorm, same, take_step


class Unlucky(cats.weighting.CATS):
    """CATS, but its update fails half-way while ``broken``."""

    broken = False

    def update(self, losses, dots, sqnorms, present):
        super().update(losses, dots, sqnorms, present)
        if self.broken:
            raise ZeroDivisionError


class UnluckyRule(RunningNorm):
    broken = False

    def forward(self, gram):
        weights = super().forward(gram)
        if self.broken:
            raise ZeroDivisionError
        return weights


def build(problem, weighting, base=lambda params: torch.optim.Adam(params, lr=0.1)):
    rules = {"weighted": lambda: Unlucky(inner_steps=100), "per task": lambda: Unlucky(inner_steps=1)}
    return cats.MultiTask(base(problem.params), TASKS, rules.get(weighting, UnluckyRule)())


def losses_with(problem, middle, scale=1.0):
    """Three losses as callables. The second one is computed by ``middle``."""
    return {"az": lambda: scale * problem.loss(0), "be": middle, "gl": lambda: scale * problem.loss(2)}


def raising(error):
    def loss(*_):
        raise error

    return loss


def everything(problem, optimizer):
    """All that must be as before. Gradients: the tensor objects and their values."""
    grads = [p.grad for p in problem.params]
    return grads, copy.deepcopy((problem.theta, grads, optimizer.state_dict()))


def assert_unchanged(before, problem, optimizer):
    grads, values = everything(problem, optimizer)
    assert all(a is b for a, b in zip(grads, before[0], strict=True))
    assert same(values, before[1])


@pytest.fixture
def one_of_many():
    """A group with one process, in which the reducer is the one for several processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("gathered", ["nothing", "other code's", "an earlier call"])
@pytest.mark.parametrize("weighting", ["weighted", "per task", "gram"])
def test_a_loss_that_raises(weighting, gathered, error):
    check_backward(weighting, gathered, lambda problem: raising(error()), error)


@pytest.mark.parametrize("gathered", ["nothing", "an earlier call"])
@pytest.mark.parametrize("weighting", ["weighted", "per task", "gram"])
def test_a_backward_pass_that_raises(weighting, gathered):
    def middle(problem):
        def loss():
            value = problem.loss(1)
            value.register_hook(raising(KeyboardInterrupt()))
            return value

        return loss

    check_backward(weighting, gathered, middle, KeyboardInterrupt)


@pytest.mark.parametrize("gathered", ["nothing", "other code's", "an earlier call"])
@pytest.mark.parametrize("weighting", ["weighted", "per task"])
@pytest.mark.usefixtures("one_of_many")
def test_a_loss_that_raises_in_one_of_several_processes(weighting, gathered, monkeypatch):
    monkeypatch.setattr(
        distributed, "reducer", lambda params, communication, current: current or distributed.Replicated(communication)
    )
    check_backward(weighting, gathered, lambda problem: raising(ZeroDivisionError()), ZeroDivisionError)


def check_backward(weighting, gathered, middle, error):
    """A call fails. Afterwards all is as before it, and going on gives the same result as without it."""
    problem, alone = Quadratics(), Quadratics()
    optimizer, reference = build(problem, weighting), build(alone, weighting)
    for p, o in ((problem, optimizer), (alone, reference)):
        take_step(o, p.losses())
        o.zero_grad()
        if gathered == "other code's":
            p.weight.square().sum().backward()
        elif gathered == "an earlier call":
            o.backward([loss / 4 for loss in p.losses()])
    before = everything(problem, optimizer)
    with pytest.raises(error):
        optimizer.backward(losses_with(problem, middle(problem), scale=100))
    assert_unchanged(before, problem, optimizer)
    for p, o in ((problem, optimizer), (alone, reference)):
        o.backward(losses_with(p, lambda p=p: p.loss(1)))
        o.step()
    assert torch.equal(problem.theta, alone.theta)
    assert same(optimizer.state_dict(), reference.state_dict())


def test_a_rule_of_the_gram_matrix_that_raises():
    problem, alone = Quadratics(), Quadratics()
    optimizer, reference = build(problem, "gram"), build(alone, "gram")
    for p, o in ((problem, optimizer), (alone, reference)):
        take_step(o, p.losses())
        o.zero_grad()
        o.backward([loss / 4 for loss in p.losses()])
    before = everything(problem, optimizer)
    optimizer.weighting.rule.broken = True
    with pytest.raises(ZeroDivisionError):
        optimizer.backward(problem.losses())
    assert_unchanged(before, problem, optimizer)
    optimizer.weighting.rule.broken = False
    for p, o in ((problem, optimizer), (alone, reference)):
        o.backward(p.losses())
        o.step()
    assert torch.equal(problem.theta, alone.theta) and same(optimizer.state_dict(), reference.state_dict())


HOOKS = [(w, where) for w in ("weighted", "per task", "gram") for where in ("pre-hook", "pre-hook of the base")]


@pytest.mark.parametrize(("weighting", "where"), [("per task", "update"), *HOOKS])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_that_fails(weighting, where, scaled):
    problem, alone = Quadratics(dtype=torch.float32), Quadratics(dtype=torch.float32)
    optimizer, reference = build(problem, weighting), build(alone, weighting)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for p, o in ((problem, optimizer), (alone, reference)):
        take_step(o, p.losses())
        o.zero_grad()
        o.backward(p.losses(), scaler=scaler if scaled and o is optimizer else None)
    before = everything(problem, optimizer)
    handle = None
    if where == "update":
        optimizer.weighting.broken = True
    else:
        target = optimizer if where == "pre-hook" else optimizer.base
        handle = target.register_step_pre_hook(lambda *_: 1 // 0)
    take = (lambda: scaler.step(optimizer)) if scaled else optimizer.step
    with pytest.raises(ZeroDivisionError) as caught:
        take()
    assert not getattr(caught.value, "__notes__", None)  # no parameter has moved
    assert_unchanged(before, problem, optimizer)
    optimizer.weighting.broken = False
    if handle is not None:
        handle.remove()
    if weighting != "weighted" and where != "pre-hook":  # the failed step has freed the gradients of the tasks
        with pytest.raises(RuntimeError, match=r"call step\(\) again, or zero_grad\(\)"):
            optimizer.backward(problem.losses(), scaler=scaler if scaled else None)
        assert_unchanged(before, problem, optimizer)
    if where == "pre-hook":  # torch runs it before step(), so only a new cycle forgets what GradScaler has set
        optimizer.zero_grad()
        optimizer.backward(problem.losses(), scaler=scaler if scaled else None)
    take()
    reference.step()
    assert torch.equal(problem.theta, alone.theta)
    assert same(optimizer.state_dict(), reference.state_dict())


@pytest.mark.parametrize("foreach", [False, True])
def test_a_base_optimizer_that_fails_half_way_says_so(foreach):
    class Fragile(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            raise ZeroDivisionError

    problem = Quadratics()
    optimizer = build(problem, "per task", lambda params: Fragile(params, lr=0.1, foreach=foreach))
    optimizer.backward(problem.losses())
    before = optimizer.state_dict()["multitask"]
    with pytest.raises(ZeroDivisionError) as caught:
        optimizer.step()
    assert "load a checkpoint" in caught.value.__notes__[0]
    assert same(optimizer.state_dict()["multitask"], before)


@pytest.mark.parametrize("change", ["a moment", "a new entry", "a number", "a group", "nothing"])
def test_a_base_optimizer_that_fails_between_its_state_and_the_parameters_says_so(change):
    class Fragile(torch.optim.SGD):
        broken = False

        def step(self, closure=None):
            if not self.broken:
                super().step()
                self.state[problem.weight]["steps"] = 1
                return
            state = self.state[problem.weight]
            if change == "a moment":
                torch._foreach_mul_([state["momentum_buffer"]], 0.9)
            elif change == "a new entry":
                state["largest"] = torch.ones(2)
            elif change == "a number":
                state["steps"] += 1
            elif change == "a group":
                self.param_groups[0]["steps"] = 1
            raise torch.OutOfMemoryError

    problem = Quadratics()
    optimizer = build(problem, "per task", lambda params: Fragile(params, lr=0.1, momentum=0.9))
    take_step(optimizer, problem.losses())
    optimizer.base.broken = True
    before = problem.theta
    with pytest.raises(torch.OutOfMemoryError) as caught:
        take_step(optimizer, problem.losses())
    assert torch.equal(problem.theta, before)
    notes = getattr(caught.value, "__notes__", [])
    assert not notes if change == "nothing" else "its state" in notes[0]


def test_a_closure_that_fails_leaves_no_scale_behind():
    problem = Quadratics(dtype=torch.float32)
    optimizer = build(problem, "per task")
    scaler = torch.amp.GradScaler("cpu")
    optimizer.backward(problem.losses(), scaler=scaler)
    with pytest.raises(ZeroDivisionError):
        scaler.step(optimizer, lambda: 1 // 0)
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")
