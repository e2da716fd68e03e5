"""The rules of RLW, DWA, uncertainty weighting and FAMO, against independent computations in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cats.weighting import DWA, FAMO, RLW, Uncertainty
from cats.weighting.adam import adam_start, adam_step

# A few float64 operations on numbers near 1; only their order differs.
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def update(weighting, losses, present):
    nothing = torch.full((len(present),), torch.nan, dtype=torch.float64)
    weighting.update(double(losses), nothing, nothing, present)


def test_adam_is_that_of_torch_for_each_task_by_itself():
    rng = np.random.default_rng(0)
    state = adam_start(double([0.5, -1.0, 2.0]))
    values = [torch.nn.Parameter(state[0, n].clone()) for n in range(3)]
    adams = [torch.optim.Adam([value], lr=0.1, weight_decay=0.3) for value in values]
    for _ in range(20):
        present = sorted(rng.choice(3, size=rng.integers(1, 4), replace=False).tolist())
        slopes = double(rng.normal(size=len(present)))
        state = adam_step(state, slopes, present, lr=0.1, decay=0.3)
        for n, slope in zip(present, slopes, strict=True):
            values[n].grad = slope.clone()
            adams[n].step()
        np.testing.assert_allclose(state[0], [value.item() for value in values], **CLOSE)


def test_rlw_draws_softmax_of_normal_numbers():
    weighting = RLW(seed=5)
    weighting.start(4)
    drawn = []
    for _ in range(500):
        drawn.append(weighting.weights().numpy())
        assert drawn[-1].sum() == pytest.approx(1) and np.array_equal(drawn[-1], weighting.weights())
        update(weighting, [1.0], [2])
    centred = np.log(drawn) - np.log(drawn).mean(1, keepdims=True)
    # The standard error of a mean of 500 is 0.04; a normal number minus the mean of four has the variance 3/4.
    assert np.abs(centred.mean(0)).max() < 0.15 and abs(centred.var() - 0.75) < 0.1
    assert len({tuple(w) for w in drawn}) == 500
    other = RLW(seed=6, reduction="sum")
    other.start(4)
    assert other.weights().sum().item() == pytest.approx(4) and not np.allclose(other.weights() / 4, drawn[0])


def test_dwa_compares_two_windows():
    rng = np.random.default_rng(1)
    weighting = DWA(window=4, temperature=0.5)
    weighting.start(3)
    windows: list[dict[int, list[float]]] = [{}]
    means: list[list[float]] = [[], [], []]  # of each task, of the windows in which it was
    for t in range(30):
        present = [0, 1, 2] if t % 3 else [0, 2]
        if 8 <= t < 12:
            present = [0, 2]  # task 1 is absent from a whole window: its ratio stays
        losses = rng.uniform(0.5, 2, size=len(present))
        update(weighting, losses, present)
        for n, loss in zip(present, losses, strict=True):
            windows[-1].setdefault(n, []).append(loss)
        if t % 4 == 3:
            for n, values in windows[-1].items():
                means[n].append(np.mean(values))
            windows.append({})
        r = np.array([m[-1] / m[-2] if len(m) > 1 else 1.0 for m in means])
        np.testing.assert_allclose(weighting.weights(), 3 * np.exp(r / 0.5) / np.exp(r / 0.5).sum(), **CLOSE)
    assert weighting.weights().std() > 0.01


def test_dwa_with_a_shorter_window_than_in_its_state():
    one, other = DWA(window=9), DWA(window=2)
    one.start(2)
    other.start(2)
    losses = torch.ones(2).double()
    for _ in range(5):
        one.update(losses, losses, losses, [0, 1])
    other.load_state_dict(one.state_dict())
    other.update(losses, losses, losses, [0, 1])  # ends the window
    for _ in range(2):
        other.update(losses * torch.tensor([1.0, 0.5]), losses, losses, [0, 1])
    torch.testing.assert_close(other.weights(), 2 * torch.tensor([0.5, 0.25]).double().softmax(0))


def test_uncertainty_descends_on_its_loss():
    rng = np.random.default_rng(2)
    weighting = Uncertainty(lr=0.1, start=0.3)
    weighting.start(3)
    s = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([s], lr=0.1)
    for _ in range(20):
        losses = rng.uniform(0.1, 3, size=3)
        np.testing.assert_allclose(weighting.weights(), 0.5 * np.exp(-s.detach().numpy()), **CLOSE)
        update(weighting, losses, [0, 1, 2])
        adam.zero_grad()
        (double(losses) / (2 * s.exp()) + s / 2).sum().backward()
        adam.step()
    for _ in range(3000):
        update(weighting, [0.1, 1.0, 20.0], [0, 1, 2])
    np.testing.assert_allclose(weighting.weights(), [5.0, 0.5, 0.025], rtol=1e-3)  # 1 / (2 L)
    mean = Uncertainty(reduction="mean")
    mean.start(4)
    np.testing.assert_allclose(mean.weights(), [0.5 * np.exp(0.5) / 4] * 4)


def test_famo_takes_the_steps_of_the_paper():
    rng = np.random.default_rng(3)
    bounds = [0.1, 0.0, 0.3]
    weighting = FAMO(lr=0.1, decay=0.05, baselines=bounds)
    weighting.start(3)
    xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=0.1, weight_decay=0.05)
    for _ in range(20):
        before, after = rng.uniform(0.5, 3, size=3), rng.uniform(0.5, 3, size=3)
        # The weights are the derivatives of c Σ z log D by the losses.
        losses = double(before).requires_grad_()
        z, distance = torch.softmax(xi, 0).detach(), losses - double(bounds) + 1e-8
        c = 1 / (z / distance).sum().detach()
        (c * (z * distance.log()).sum()).backward()
        np.testing.assert_allclose(weighting.weights_from_losses(double(before), [0, 1, 2]), losses.grad, **CLOSE)
        weighting.update_after(double(before), double(after), [0, 1, 2])
        fall = (double(before) - double(bounds) + 1e-8).log() - (double(after) - double(bounds) + 1e-8).log()
        adam.zero_grad()
        (torch.softmax(xi, 0) @ fall).backward()
        adam.step()
    assert xi.detach().std() > 0.1


def test_famo_with_some_of_the_tasks():
    """The tasks present behave as if they were alone, and share what they have together in softmax(ξ)."""
    weighting, alone = FAMO(lr=0.1), FAMO(lr=0.1)
    weighting.start(4)
    alone.start(2)
    for before, after in (([1.0, 2.0], [0.5, 1.9]), ([0.8, 1.0], [0.7, 1.2])):
        used = weighting.weights_from_losses(double(before), [1, 3])
        z = np.exp(weighting.state_dict()["adam"][0].numpy())
        np.testing.assert_allclose(used.sum(), z[[1, 3]].sum() / z.sum(), **CLOSE)
        np.testing.assert_allclose(used / used.sum(), alone.weights_from_losses(double(before), [0, 1]), **CLOSE)
        weighting.update_after(double(before), double(after), [1, 3])
        alone.update_after(double(before), double(after), [0, 1])
    assert torch.equal(weighting.state_dict()["adam"][:, [0, 2]], torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RLW(seed=0.5), "RLW: seed must be an integer, got 0"),
        (lambda: RLW(reduction="max"), "RLW: reduction must be 'sum' or 'mean', got 'max'"),
        (lambda: DWA(window=0), "DWA: window must be an integer of at least 1, got 0"),
        (lambda: DWA(temperature=0), "DWA: temperature must be a finite number of at least 1e-06, got 0"),
        (lambda: Uncertainty(lr="high"), "Uncertainty: lr must be a number, got 'high'"),
        (lambda: Uncertainty(start=50), "Uncertainty: start must be a finite number from -30 to 30, got 50"),
        (lambda: FAMO(lr=float("nan")), "FAMO: lr must be a finite number of at least 0, got nan"),
        (lambda: FAMO(baselines=[1.0]).start(2), "FAMO: baselines needs one number for each of the 2 tasks"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
