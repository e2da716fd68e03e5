"""Algorithm 1, step by step, and its special cases: one task, fixed weights."""

from __future__ import annotations

import functools
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import cats
import cats.accumulate
from tests.optim.common import BASES, TASKS, Quadratics, same, take_step


def algorithm_1(problem, steps, *, m, eta, mu, epsilon, simplex, loss_term, cross_batch, reduction, lr, offset):
    """Algorithm 1 with plain gradient descent on θ in numpy: yields θ, α and λ after every step."""
    k = len(problem.centre)
    theta = problem.start.copy()
    a, alpha, lc, ls, ln = np.zeros(k), np.ones(k), 0.0, 0.0, np.zeros(k)
    if simplex != "lagrangian":
        alpha = np.ones(k) / k
    scale = k if reduction == "sum" and simplex != "lagrangian" else 1
    for step in range(1, steps + 1):
        halves = [
            [problem.numpy_loss(theta, n, s * offset) for n in range(k)] for s in ((1, -1) if cross_batch else (0,))
        ]
        losses = np.mean([[loss for loss, _ in half] for half in halves], axis=0)
        per_half = [np.array([g for _, g in half]) for half in halves]
        combined = [alpha @ g for g in per_half]
        theta = theta - lr * scale * np.mean(combined, axis=0)
        if step % m == 0:
            v = (per_half[0] @ combined[-1] + per_half[-1] @ combined[0]) / 2
            seen = losses if loss_term else np.zeros(k)
            if simplex == "softmax":
                h = (seen + 2 * lc * v) / (1 + 2 * lc)
                lc = max(0, lc + mu * (alpha @ v - epsilon))
                a = a - eta * alpha * (h - alpha @ h)
                alpha = np.exp(a) / np.exp(a).sum()
            elif simplex == "proximal":  # κ = 0.5 and ρ = 0.1 are the defaults
                if alpha @ v > 0:  # with cross_batch, the estimate of ‖ḡ‖² can be negative
                    slope = np.clip(v / (alpha @ v), -5, 10) - 1
                    if loss_term:
                        slope += np.clip(losses / (alpha @ losses), -5, 10) - 1
                    a = (1 - eta) * a - eta * 0.5 * slope
                alpha = 0.9 * np.exp(a) / np.exp(a).sum() + 0.1 / k
            else:
                d_alpha = seen + 2 * lc * v + 2 * ls * (alpha.sum() - 1) - ln
                d_lc, d_ls, d_ln = alpha @ v - epsilon, (alpha.sum() - 1) ** 2, epsilon - alpha
                alpha = np.maximum(0, alpha - eta * d_alpha)
                lc, ls, ln = max(0, lc + mu * d_lc), ls + mu * d_ls, np.maximum(0, ln + mu * d_ln)
        yield theta, alpha, {"proximal": [], "softmax": [lc], "lagrangian": [lc, ls, *ln]}[simplex]


@pytest.mark.parametrize("cross_batch", [False, True])
@pytest.mark.parametrize("loss_term", [False, True])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("simplex", ["proximal", "softmax", "lagrangian"])
@pytest.mark.filterwarnings("ignore:CATS. the:UserWarning")  # large rates, so that α moves: a multiplier may run away
def test_algorithm_1_step_by_step(simplex, reduction, m, loss_term, cross_batch):
    problem = Quadratics()
    rule = {
        "epsilon": 0.02,
        "simplex": simplex,
        "reduction": reduction,
        "loss_term": loss_term,
        "cross_batch": cross_batch,
    }
    optimizer = cats.CATS(
        torch.optim.SGD(problem.params, lr=0.05), TASKS, inner_steps=m, alpha_lr=0.3, multiplier_lr=0.2, **rule
    )
    expected = algorithm_1(problem, 12, m=m, eta=0.3, mu=0.2, lr=0.05, offset=0.3, **rule)
    before = optimizer.alpha
    for step, (theta, alpha, multipliers) in enumerate(expected, 1):
        form = "callables" if step % 2 else "tensors"
        assert optimizer.needs_task_gradients == (step % m == 0)
        losses = problem.losses(form)
        if cross_batch:  # a step without per-task gradients takes pairs too, and uses their mean
            losses = list(zip(problem.losses(form, 0.3), problem.losses(form, -0.3), strict=True))
        take_step(optimizer, dict(zip(TASKS, losses, strict=True)))
        # float64: only the order of the sums differs
        np.testing.assert_allclose(problem.theta, theta, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(list(optimizer.alpha.values()), alpha, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(list(optimizer.multipliers.values()), multipliers, rtol=1e-11, atol=1e-12)
    assert max(abs(optimizer.alpha[t] - before[t]) for t in TASKS) > 1e-3, "alpha must have moved to be tested"


def test_softmax_without_loss_term_reaches_the_min_norm_point():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(3, 8, generator=generator, dtype=torch.float64) + 0.2
    gram = (rows @ rows.T).numpy()
    target = np.linalg.solve(gram, np.ones(3))
    target /= target.sum()
    assert (target > 0.1).all()  # it lies inside the simplex, so it is the minimiser
    theta = nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = cats.CATS(
        torch.optim.SGD([theta], lr=0.0), 3, simplex="softmax", inner_steps=1, alpha_lr=2.0, multiplier_lr=0.1
    )
    for _ in range(600):
        take_step(optimizer, list(rows @ theta))
    np.testing.assert_allclose(list(optimizer.alpha.values()), target, atol=1e-6)
    assert optimizer.statistics["sqnorm"] == pytest.approx(target @ gram @ target, rel=1e-9)


def test_a_batch_of_tasks_whose_weights_are_0_by_underflow_changes_nothing():
    weighting = cats.weighting.CATS(simplex="softmax", inner_steps=1, alpha_lr=0.1)
    weighting.start(3)
    numbers = torch.tensor([1.0, 2.0, 5.0]).double()
    weighting.load_state_dict(weighting.state_dict() | {"a": torch.tensor([0.0, -1000.0, -900.0]).double()})
    weights = weighting.weights()
    assert weights[1:].tolist() == [0, 0]
    weighting.update(numbers[:2], 0 * numbers[:2], numbers[:2], [1, 2])
    assert torch.equal(weighting.weights(), weights)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", ["tensors", "callables"])
def test_one_task_is_the_base_optimizer_bit_for_bit(base, form):
    plain, ours = (Quadratics(k=1, dtype=torch.float32) for _ in range(2))
    reference = BASES[base](plain.params)
    optimizer = cats.CATS(BASES[base](ours.params), ["az"], inner_steps=3, loss_term=True, alpha_lr=1.0)
    for _ in range(8):
        reference.zero_grad()
        plain.loss(0).backward()
        reference.step()
        take_step(optimizer, {"az": ours.losses(form)[0]})
        assert torch.equal(plain.theta, ours.theta)
    assert optimizer.alpha == {"az": 1.0}
    assert optimizer.statistics["task_gradient_steps"] == 2


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", ["tensors", "callables"])
def test_fixed_weights_are_plain_scalarisation(base, form):
    weights = [0.5, 2.0, 0.25]
    plain, static, frozen_alpha = (Quadratics() for _ in range(3))
    reference = BASES[base](plain.params)
    ours = cats.MultiTask(BASES[base](static.params), TASKS, cats.weighting.Static(weights))
    # CATS with learning rates of 0 keeps α = 1. Every second step computes per-task gradients.
    equal = cats.CATS(
        BASES[base](frozen_alpha.params), TASKS, simplex="lagrangian", alpha_lr=0, multiplier_lr=0, inner_steps=2
    )
    for _ in range(6):
        reference.zero_grad()
        sum(w * loss for w, loss in zip(weights, plain.losses(), strict=True)).backward()
        reference.step()
        assert not ours.needs_task_gradients
        take_step(ours, static.losses(form))
        scaled = [lambda n=n: weights[n] * frozen_alpha.loss(n) for n in range(3)]
        take_step(equal, scaled if form == "callables" else [f() for f in scaled])
        # float64 rounding, amplified where Adam and Adafactor divide by the size of the gradient
        torch.testing.assert_close(static.theta, plain.theta, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(frozen_alpha.theta, plain.theta, rtol=1e-10, atol=1e-12)
    assert ours.statistics["task_gradient_steps"] == 0 and equal.statistics["task_gradient_steps"] == 3


def test_subset_of_the_tasks():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=1, loss_term=True)
    start = torch.tensor(problem.start)
    optimizer.backward({"gl": problem.loss(2), "az": problem.loss(0)})
    optimizer.step()
    gradient = [problem.numpy_loss(problem.start, n)[1] for n in (0, 2)]
    torch.testing.assert_close(
        problem.theta, start - 0.1 * torch.tensor(sum(gradient))
    )  # α is not renormalised: it is 1/3 each, and ḡ is multiplied by the number of all tasks
    assert sum(optimizer.alpha.values()) == pytest.approx(1, rel=1e-14)
    assert optimizer.alpha["az"] != pytest.approx(1 / 3, rel=1e-3)
    assert set(optimizer.statistics["losses"]) == set(optimizer.statistics["dots"]) == {"az", "gl"}
    dots = [g @ sum(gradient) / 3 for g in gradient]
    np.testing.assert_allclose(list(optimizer.statistics["dots"].values()), dots, rtol=1e-12)


def test_closure():
    problem, twin = Quadratics(), Quadratics()
    optimizer, reference = (
        cats.CATS(torch.optim.Adam(p.params, lr=0.1), TASKS, inner_steps=2) for p in (problem, twin)
    )

    def closure():
        optimizer.zero_grad()
        losses = problem.losses()
        optimizer.backward(losses)
        return sum(losses)

    for _ in range(4):
        total = sum(twin.losses()).item()
        with torch.no_grad():
            assert optimizer.step(closure).item() == total
        take_step(reference, twin.losses())
        assert torch.equal(problem.theta, twin.theta)


def test_step_needs_backward_every_time():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS)
    take_step(optimizer, problem.losses())
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        optimizer.step()


def test_integer_tasks_and_statistics_before_the_first_step():
    problem = Quadratics(k=2)
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), 2, simplex="lagrangian", inner_steps=1)
    assert optimizer.alpha == {0: 1.0, 1: 1.0}
    assert list(optimizer.multipliers) == ["lambda_c", "lambda_s", "lambda_n[0]", "lambda_n[1]"]
    assert optimizer.statistics["losses"] == {} and math.isnan(optimizer.statistics["sqnorm"])
    take_step(optimizer, {1: problem.loss(1)})
    assert list(optimizer.statistics["losses"]) == [1]
    optimizer.statistics["losses"].clear()  # statistics are a copy: this changes nothing
    assert list(optimizer.statistics["losses"]) == [1]


@pytest.mark.parametrize("options", [{}, {"simplex": "lagrangian", "alpha_lr": 1e-3}, {"cross_batch": True}])
def test_a_default_device_elsewhere_does_not_matter(options):
    finals = []
    for device in ("cpu", "meta"):
        problem = Quadratics()
        with torch.device(device):
            optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.01), TASKS, inner_steps=2, **options)
        for _ in range(4):
            losses = problem.losses()
            if optimizer.needs_task_gradients and "cross_batch" in options:
                losses = [(loss, other) for loss, other in zip(losses, problem.losses(shift=0.1), strict=True)]
            with torch.device(device):
                take_step(optimizer, losses)
        finals.append([problem.theta, optimizer.alpha, optimizer.statistics])
    assert same(*finals)


class Waits(TorchFunctionMode):
    """Refuses what makes the host wait for another device, beyond reading: indexing with a list, plain copies."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__ and not args[0].is_cpu:
            assert not isinstance(args[1], list)
        result = func(*args, **kwargs)
        if func is torch.Tensor.to and args[0].is_cpu and not result.is_cpu:
            assert kwargs.get("non_blocking")
        return result


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", ["indices", "indices of entries", "names", "callable", "tensors", "callables"])
def test_backward_of_an_inner_step_reads_nothing_from_the_device(form, reduction):
    """On "meta" there is nothing that could be read: bincount, nonzero, item() and copies to the CPU raise."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to("meta")
    optimizer = cats.CATS(torch.optim.SGD(net.parameters(), lr=0.1), TASKS, inner_steps=2)
    value = functools.partial(net, torch.empty(6, 4, device="meta"))
    more = {} if form in ("tensors", "callables") else {"reduction": reduction, "tasks": torch.arange(6) % 4 - 1}
    if form == "indices of entries":
        more["tasks"] = more["tasks"][:, None].expand(6, 2)
    elif form == "names":
        more["tasks"] = [TASKS[n % len(TASKS)] for n in range(6)]
    single = [lambda: value().mean() for _ in TASKS]
    with Waits():
        losses = {"callable": value, "callables": single, "tensors": [one() for one in single]}.get(form)
        optimizer.backward(value() if losses is None else losses, **more)
    assert all(p.grad.is_meta for p in net.parameters())


def test_per_task_gradients_are_gone_when_the_base_optimizer_steps(monkeypatch):
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.Adam(problem.params), TASKS, inner_steps=1)
    formed, alive = [], []
    original = cats.accumulate.task_gradients

    def remember(*args, **kwargs):
        values, grads = original(*args, **kwargs)
        formed.extend(weakref.ref(g) for row in grads for g in row)
        return values, grads

    monkeypatch.setattr(cats.accumulate, "task_gradients", remember)
    optimizer.base.register_step_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in formed)))
    take_step(optimizer, problem.losses())
    assert len(formed) == 6 and alive == [0]
