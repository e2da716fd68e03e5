"""GradNorm: its rule against autograd on the formula, and the norms that it gets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import cats
from cats.weighting import GradNorm
from tests.optim.common import TASKS, Heads, take_step

CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # a few float64 operations on numbers near 1; Adam divides two small numbers


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def update(weighting, losses, norms, present):
    weighting.update(double(losses), double([math.nan] * len(present)), double(norms).square(), present)


def test_first_step_by_hand():
    # w = 1 and norms 2 and 1, so the target is 1.5 for both. The slopes in w are 2 and −1, those in p are 1.5 and −1.5.
    # The first step of Adam has the size of the learning rate, whatever the slope is.
    softmax = GradNorm(simplex="softmax", lr=0.025)
    softmax.start(2)
    update(softmax, [4.0, 4.0], [2.0, 1.0], [0, 1])
    np.testing.assert_allclose(softmax.weights(), [2 / (1 + np.exp(0.05)), 2 / (1 + np.exp(-0.05))], rtol=1e-7)
    paper = GradNorm(lr=0.025)
    paper.start(2)
    update(paper, [4.0, 4.0], [2.0, 1.0], [0, 1])
    np.testing.assert_allclose(paper.weights(), [0.975, 1.025], rtol=1e-7)  # their sum is 2 already


@pytest.mark.parametrize("simplex", ["renormalise", "softmax"])
@pytest.mark.parametrize("initial", [1, 3, [2.0, 3.0, 4.0]])
def test_it_descends_on_its_loss(simplex, initial):
    rng = np.random.default_rng(0)
    weighting = GradNorm(power=1.2, lr=0.05, simplex=simplex, initial=initial)
    weighting.start(3)
    x = torch.full((3,), float(simplex == "renormalise"), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.05)
    seen = []
    for _ in range(15):
        losses, norms = rng.uniform(0.5, 3, size=3), rng.uniform(0.5, 3, size=3)
        seen.append(losses)
        update(weighting, losses, norms, [0, 1, 2])
        if initial == 3 and len(seen) < 3:
            np.testing.assert_allclose(weighting.weights(), 1.0)
            continue
        first = np.mean(seen[:initial], axis=0) if isinstance(initial, int) else initial
        weighted = (3 * torch.softmax(x, 0) if simplex == "softmax" else x) * double(norms)
        rates = double(losses / first)
        target = (weighted.mean() * (rates / rates.mean()) ** 1.2).detach()
        adam.zero_grad()
        (weighted - target).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            if simplex == "renormalise":
                x *= 3 / x.sum()
            else:
                x -= torch.logsumexp(x, 0)  # softmax(x) is the same
        want = 3 * torch.softmax(x, 0) if simplex == "softmax" else x
        np.testing.assert_allclose(weighting.weights(), want.detach(), **CLOSE)
    assert weighting.weights().std() > 0.1


@pytest.mark.parametrize("simplex", ["renormalise", "softmax"])
def test_the_norms_meet_the_target(simplex):
    """With constant losses and norms, w_n s_n becomes equal for all tasks."""
    weighting = GradNorm(simplex=simplex, lr=0.01, reduction="mean")
    weighting.start(3)
    for _ in range(1500):
        update(weighting, [1.0, 2.0, 3.0], [0.5, 1.0, 2.0], [0, 1, 2])
    assert weighting.weights().sum().item() == pytest.approx(1)
    scaled = weighting.weights() * double([0.5, 1.0, 2.0])
    np.testing.assert_allclose(scaled / scaled.mean(), 1.0, atol=0.05)  # Adam's steps do not shrink
    for _ in range(3000):  # a task that has become slow gets more
        update(weighting, [1.0, 2.0, 6.0], [0.5, 1.0, 2.0], [0, 1, 2])
    scaled = (weighting.weights() * double([0.5, 1.0, 2.0])).numpy()
    assert scaled[2] > 1.5 * scaled[0]


def test_losses_of_0_and_less():
    weighting = GradNorm(lr=0.1)
    weighting.start(2)
    for losses in ([0.0, -1.0], [0.0, 0.0], [-2.0, 3.0], [1.0, -1e300]):
        update(weighting, losses, [0.0, 1.0], [0, 1])
        assert weighting.weights().isfinite().all() and weighting.weights().sum().item() == pytest.approx(2)


def test_shared_names_the_layer_whose_norms_count():
    model, x = Heads(), torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = cats.MultiTask(base, TASKS, GradNorm(), shared=[model.trunk.weight])
    norms = [torch.autograd.grad(model.losses(x)[task], model.trunk.weight)[0].norm().item() for task in TASKS]
    take_step(optimizer, model.losses(x))
    np.testing.assert_allclose([math.sqrt(x) for x in optimizer.statistics["sqnorms"].values()], norms, rtol=1e-12)
    mean = np.mean(norms)
    want = [1.0 - 0.025 * np.sign(norm - mean) for norm in norms]
    np.testing.assert_allclose([3 * a for a in optimizer.alpha.values()], np.array(want) * 3 / sum(want), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simplex": "sphere"}, "simplex must be 'renormalise' or 'softmax', got 'sphere'"),
        ({"initial": 0}, "initial must be a number of steps or one number per task, got 0"),
        ({"initial": [1.0]}, "initial needs one number for each of the 2 tasks"),
        ({"power": -1}, "power must be a finite number of at least 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=f"GradNorm: {message}"):
        GradNorm(**options).start(2)


def test_a_state_of_the_other_simplex_is_refused():
    one, other = GradNorm(), GradNorm(simplex="softmax")
    one.start(2)
    other.start(2)
    state = one.state_dict()
    with pytest.raises(ValueError, match="for simplex='renormalise', this has simplex='softmax'"):
        other.load_state_dict(state)
    del state["simplex"]  # as earlier versions wrote it
    one.load_state_dict(state)
