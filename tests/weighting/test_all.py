"""What holds for all weightings: whose state they load, and what a second optimizer gets from one."""

from __future__ import annotations

import copy

import pytest
import torch

import cats
from cats.weighting import (
    CATS,
    DWA,
    FAMO,
    MGDA,
    RLW,
    ChiSquareDRO,
    CVaRDRO,
    GradDrop,
    GradNorm,
    GradVac,
    GroupDRO,
    PCGrad,
    Static,
    TargetProjection,
    Uncertainty,
)
from tests.optim.common import same
from tests.weighting.common import Net

TASKS = ["az", "be", "gl"]
MAKERS = {
    "CATS": lambda: CATS(inner_steps=1),
    "TargetProjection": lambda: TargetProjection("gl"),
    **{kind.__name__: kind for kind in [Static, RLW, GradNorm, GroupDRO, CVaRDRO, ChiSquareDRO, Uncertainty, DWA]},
    **{kind.__name__: kind for kind in [FAMO, MGDA, PCGrad, GradVac, GradDrop]},
}


def optimizer_of(net, weighting, tasks=TASKS):
    return cats.MultiTask(torch.optim.SGD(net.parameters(), lr=0.1), tasks, weighting)


def run(net, optimizer, steps=8):
    """The loss of one task is turned round, so that gradients conflict."""
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.backward([lambda n=n: net.loss(n) * (1 - 2 * (n == 1)) + 9 for n in range(3)])
        optimizer.step()


def test_the_state_of_another_weighting_is_refused():
    states, optimizers = {}, {}
    for name, make in MAKERS.items():
        net = Net()
        optimizers[name] = optimizer_of(net, make())
        run(net, optimizers[name])
        states[name] = copy.deepcopy(optimizers[name].state_dict())
    for name, optimizer in optimizers.items():
        for other in MAKERS.keys() - {name}:
            with pytest.raises(ValueError, match=f"for the weighting {other}, this optimizer has {name}"):
                optimizer.load_state_dict(states[other])
        assert same(optimizer.state_dict(), states[name])
    for name, optimizer in optimizers.items():
        del states[name]["multitask"]["kind"]  # as earlier versions wrote it
        optimizer.load_state_dict(states[name])


@pytest.mark.parametrize("name", MAKERS)
def test_a_weighting_starts_anew_in_a_new_optimizer(name):
    """A search over learning rates may make the weighting once."""
    weighting, first, again, fresh = MAKERS[name](), Net(), Net(), Net()
    run(first, optimizer_of(first, weighting))
    run(again, optimizer_of(again, weighting))
    run(fresh, optimizer_of(fresh, MAKERS[name]()))
    for p, q in zip(again.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q)
    optimizer_of(Net(), weighting, ["az", "gl"])  # with another number of tasks


@pytest.mark.parametrize("kind", [Static, GradNorm, FAMO, MGDA])
def test_a_class_in_place_of_an_object(kind):
    with pytest.raises(TypeError, match=rf"an object, got the class {kind.__name__}: pass {kind.__name__}\("):
        optimizer_of(Net(), kind)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", [CATS, GradNorm, GroupDRO, CVaRDRO, ChiSquareDRO, DWA, FAMO])
def test_weights_are_equal_before_the_first_step(kind, reduction):
    alpha = optimizer_of(Net(), kind(reduction=reduction)).alpha
    assert list(alpha.values()) == pytest.approx([1 / 3] * 3)
