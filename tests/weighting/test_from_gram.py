"""What holds for all weightings from the Gram matrix in cats.MultiTask: accumulation, absent tasks, exact resume."""

from __future__ import annotations

import io

import pytest
import torch

import cats
from cats.weighting import MGDA, GradVac, PCGrad, TargetProjection
from tests.optim.common import same
from tests.weighting.common import Net

TASKS = ["az", "be", "gl"]
METHODS = {
    "MGDA": MGDA,
    "MGDA loss+": lambda: MGDA("loss+"),
    "PCGrad": PCGrad,
    "GradVac": lambda: GradVac(beta=0.3),
    "GradVac by layer": lambda: GradVac(beta=0.3, groups="layer"),
    "TargetProjection": lambda: TargetProjection("gl"),
    "TorchJD": lambda: cats.weighting.torchjd("GradVac", beta=0.3),
}


def optimizer_of(net, method):
    if method == "TorchJD":
        pytest.importorskip("torchjd.aggregation")
    return cats.MultiTask(torch.optim.Adam(net.parameters(), lr=0.05), TASKS, METHODS[method](), model=net)


def run(net, optimizer, steps, parts=1, conflict=True):
    for step in steps:
        present = [0, 2] if step % 3 == 1 and not hasattr(optimizer.weighting, "rule") else [0, 1, 2]
        optimizer.zero_grad()
        for _ in range(parts):
            optimizer.backward(
                {TASKS[n]: lambda n=n: net.loss(n) * (1 - 2 * (conflict and n == 1)) / parts for n in present}
            )
        optimizer.step()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "MGDA loss+"])
def test_parts_of_a_batch_and_resuming(method):
    """The loss of one task is negative, so that gradients conflict."""
    whole, parts, resumed = Net(), Net(), Net()
    one, many, other = (optimizer_of(net, method) for net in (whole, parts, resumed))
    run(whole, one, range(5))
    run(parts, many, range(5), parts=2)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    resumed.load_state_dict(whole.state_dict())
    run(whole, one, range(5, 9))
    run(resumed, other, range(5, 9))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    assert same(one.state_dict()["multitask"], other.state_dict()["multitask"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(method, bad):
    net = Net()
    optimizer = optimizer_of(net, method)
    run(net, optimizer, [0], conflict=False)
    before, weights = optimizer.weighting.state_dict(), [p.detach().clone() for p in net.parameters()]
    for spoiled in net.loss(1) * bad, net.loss(1) + bad:  # the gradient of a sum is finite
        optimizer.zero_grad()
        optimizer.backward([net.loss(0), spoiled, net.loss(2)])
        optimizer.step()
    assert optimizer.statistics["skipped"] == 2 and same(optimizer.weighting.state_dict(), before)
    assert all(map(torch.equal, net.parameters(), weights))


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_all_losses_does_not_matter(method):
    """In float32, from the losses to the weights."""
    found = []
    for factor in 1.0, 1e-12, 1e12:
        net = Net().float()
        net.x, net.y = net.x.float(), net.y.float()
        optimizer = optimizer_of(net, method)
        optimizer.backward([factor * net.loss(n) for n in range(3)])
        optimizer.step()
        found.append(torch.tensor(list(optimizer.alpha.values())))
    torch.testing.assert_close(found[1:], [found[0]] * 2, rtol=1e-4, atol=1e-5)  # float32


@pytest.mark.parametrize("method", METHODS)
def test_weights_stay_finite_and_nan_raises(method):
    weighting = METHODS[method]()
    weighting.names = TASKS
    weighting.start(3)
    tiny = torch.tensor([[1.0, 0, 0], [-1e-150, 1e-160, 0], [-1e-20, 0, 1e-25]]).double()
    weights = weighting.weights_from_grams((tiny @ tiny.T)[None], torch.ones(3).double(), range(3))
    assert max(row.abs().max() for row in weights) < 1e30  # far from the largest float32 number
    for bad in float("nan"), float("inf"):
        with pytest.raises(ValueError, match="nan or infinite"):
            weighting.weights_from_grams(torch.full((1, 3, 3), bad).double(), torch.ones(3).double(), range(3))


@pytest.mark.parametrize("method", METHODS)
def test_one_task(method):
    net = Net()
    optimizer = optimizer_of(net, method)
    if method == "TorchJD":  # it knows tasks from the step before by their place alone
        with pytest.raises(cats.weighting.TooFewTasksError, match="GradVacWeighting of TorchJD needs all of them"):
            optimizer.backward({"az": net.loss(0)})
        return
    (slope,) = torch.autograd.grad(net.loss(0), [net.layers[2].bias])
    optimizer.backward({"az": net.loss(0)})
    torch.testing.assert_close(net.layers[2].bias.grad, slope)
