"""The optimizer: Algorithm 1, and everything a torch optimizer is expected to survive."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import cats
import cats.optim

TASKS = ["az", "be", "gl"]


# --- a small problem: K quadratics with known gradients ---------------------------------------------------------------


class Quadratics:
    """L_n(θ) = ½ (θ − c_n)ᵀ A_n (θ − c_n) over 7 numbers, held by two parameters; float64 unless said otherwise."""

    def __init__(self, k=3, seed=0, dtype=torch.float64):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(k, 7, 7)) / 2
        self.curvature = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(7)
        self.centre = rng.normal(size=(k, 7))
        self.start = rng.normal(size=7)
        self.dtype = dtype
        self.weight = nn.Parameter(torch.tensor(self.start[:4].reshape(2, 2), dtype=dtype))
        self.bias = nn.Parameter(torch.tensor(self.start[4:], dtype=dtype))

    @property
    def params(self):
        return [self.weight, self.bias]

    @property
    def theta(self):
        return torch.cat([p.detach().flatten() for p in self.params])

    def loss(self, n, shift=0.0):
        d = torch.cat([p.flatten() for p in self.params]) - torch.tensor(self.centre[n] + shift, dtype=self.dtype)
        return d @ torch.tensor(self.curvature[n], dtype=self.dtype) @ d / 2

    def losses(self, form="tensors", shift=0.0):
        if form == "callables":
            return [lambda n=n: self.loss(n, shift) for n in range(len(self.centre))]
        return [self.loss(n, shift) for n in range(len(self.centre))]

    def numpy_loss(self, theta, n, shift=0.0):
        d = theta - self.centre[n] - shift
        return d @ self.curvature[n] @ d / 2, self.curvature[n] @ d


def same(a, b):
    """Equal to the last bit, through nested dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def take_step(optimizer, losses):
    optimizer.zero_grad()
    optimizer.backward(losses)
    optimizer.step()


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


def algorithm_1(problem, steps, *, m, eta, mu, epsilon, simplex, loss_term, cross_batch, lr, offset):
    """Algorithm 1 with plain gradient descent on θ in numpy: yields θ, α and λ after every step."""
    k = len(problem.centre)
    theta = problem.start.copy()
    a, alpha, lc, ls, ln = np.zeros(k), np.ones(k), 0.0, 0.0, np.zeros(k)
    if simplex == "softmax":
        alpha = np.ones(k) / k
    for step in range(1, steps + 1):
        halves = [
            [problem.numpy_loss(theta, n, s * offset) for n in range(k)] for s in ((1, -1) if cross_batch else (0,))
        ]
        losses = np.mean([[loss for loss, _ in half] for half in halves], axis=0)
        per_half = [np.array([g for _, g in half]) for half in halves]
        combined = [alpha @ g for g in per_half]
        theta = theta - lr * np.mean(combined, axis=0)
        if step % m == 0:
            v = (per_half[0] @ combined[-1] + per_half[-1] @ combined[0]) / 2
            seen = losses if loss_term else np.zeros(k)
            if simplex == "softmax":
                h = (seen + 2 * lc * v) / (1 + 2 * lc)
                lc = max(0, lc + mu * (alpha @ v - epsilon))
                a = a - eta * alpha * (h - alpha @ h)
                alpha = np.exp(a) / np.exp(a).sum()
            else:
                d_alpha = seen + 2 * lc * v + 2 * ls * (alpha.sum() - 1) - ln
                d_lc, d_ls, d_ln = alpha @ v - epsilon, (alpha.sum() - 1) ** 2, epsilon - alpha
                alpha = np.maximum(0, alpha - eta * d_alpha)
                lc, ls, ln = max(0, lc + mu * d_lc), ls + mu * d_ls, np.maximum(0, ln + mu * d_ln)
        yield theta, alpha, [lc] if simplex == "softmax" else [lc, ls, *ln]


@pytest.mark.parametrize("cross_batch", [False, True])
@pytest.mark.parametrize("loss_term", [False, True])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("simplex", ["softmax", "lagrangian"])
def test_algorithm_1_step_by_step(simplex, m, loss_term, cross_batch):
    problem = Quadratics()
    rule = {"epsilon": 0.02, "simplex": simplex, "loss_term": loss_term, "cross_batch": cross_batch}
    optimizer = cats.CATS(
        torch.optim.SGD(problem.params, lr=0.05), TASKS, inner_steps=m, alpha_lr=0.3, multiplier_lr=0.2, **rule
    )
    expected = algorithm_1(problem, 12, m=m, eta=0.3, mu=0.2, lr=0.05, offset=0.3, **rule)
    before = optimizer.alpha
    for step, (theta, alpha, multipliers) in enumerate(expected, 1):
        form = "callables" if step % 2 else "tensors"
        assert optimizer.needs_task_gradients == (step % m == 0)
        losses = problem.losses(form)
        if cross_batch:  # an inner step takes pairs too, and one loss per task as well when it is their mean
            losses = list(zip(problem.losses(form, 0.3), problem.losses(form, -0.3), strict=True))
        take_step(optimizer, dict(zip(TASKS, losses, strict=True)))
        # float64 throughout; only the order of the sums differs
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
    assert (target > 0.1).all()  # inside the simplex: this is the minimiser
    theta = nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = cats.CATS(torch.optim.SGD([theta], lr=0.0), 3, inner_steps=1, alpha_lr=2.0, multiplier_lr=0.1)
    for _ in range(600):
        take_step(optimizer, list(rows @ theta))
    np.testing.assert_allclose(list(optimizer.alpha.values()), target, atol=1e-6)
    assert optimizer.statistics["sqnorm"] == pytest.approx(target @ gram @ target, rel=1e-9)


BASES = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.05),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.05, fused=False),
    "AdamW fused": lambda params: torch.optim.AdamW(params, lr=0.05, fused=True),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.05),
}


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
    # CATS with learning rate 0 keeps α = 1: through per-task gradients at every second step
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
        # float64: rounding alone, amplified by Adam's and Adafactor's division by the gradient's size
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
    torch.testing.assert_close(problem.theta, start - 0.1 * torch.tensor(sum(gradient)) / 3)  # α as it is: 1/3 each
    assert optimizer.alpha["be"] == pytest.approx(1 / 3, rel=1e-14)
    assert optimizer.alpha["az"] + optimizer.alpha["gl"] == pytest.approx(2 / 3, rel=1e-14)
    assert optimizer.alpha["az"] != pytest.approx(1 / 3, rel=1e-3)
    assert set(optimizer.statistics["losses"]) == set(optimizer.statistics["dots"]) == {"az", "gl"}
    dots = [g @ sum(gradient) / 3 for g in gradient]
    np.testing.assert_allclose(list(optimizer.statistics["dots"].values()), dots, rtol=1e-12)


# --- gradient accumulation --------------------------------------------------------------------------------------------


def micro_batches(problem, how):
    """The same losses as problem.losses(), in several backward() calls."""
    if how == "halves":
        return [{t: problem.loss(n) * w for n, t in enumerate(TASKS)} for w in (0.25, 0.75)]
    return [{"gl": problem.loss(2)}, {"az": problem.loss(0), "be": lambda: problem.loss(1)}]


@pytest.mark.parametrize("how", ["halves", "tasks apart"])
@pytest.mark.parametrize("simplex", ["softmax", "lagrangian"])
def test_accumulation_is_the_one_large_batch(how, simplex):
    whole, parts = (Quadratics() for _ in range(2))
    options = {"inner_steps": 2, "simplex": simplex, "loss_term": True, "alpha_lr": 0.3, "multiplier_lr": 0.1}
    one = cats.CATS(torch.optim.Adam(whole.params, lr=0.05), TASKS, **options)
    many = cats.CATS(torch.optim.Adam(parts.params, lr=0.05), TASKS, **options)
    for _ in range(8):
        take_step(one, whole.losses())
        many.zero_grad()
        for losses in micro_batches(parts, how):
            many.backward(losses)
        many.step()
        # float64 sums in another order
        torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-11, atol=1e-12)
        for name in ("losses", "dots", "sqnorms"):
            assert many.statistics[name] == pytest.approx(one.statistics[name], rel=1e-10)
        assert many.alpha == pytest.approx(one.alpha, rel=1e-11)


def test_accumulation_across_halves():
    whole, parts = (Quadratics() for _ in range(2))
    one, many = (
        cats.CATS(torch.optim.SGD(p.params, lr=0.05), TASKS, inner_steps=1, cross_batch=True, multiplier_lr=0.1)
        for p in (whole, parts)
    )
    for _ in range(3):
        take_step(one, list(zip(whole.losses(shift=0.3), whole.losses(shift=-0.3), strict=True)))
        many.zero_grad()
        for w in (0.5, 0.5):
            pairs = zip(parts.losses(shift=0.3), parts.losses(shift=-0.3), strict=True)
            many.backward([(w * a, w * b) for a, b in pairs])
        many.step()
    torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-12, atol=1e-13)
    assert many.alpha == pytest.approx(one.alpha, rel=1e-12)


def test_backward_adds_to_what_is_there():
    for inner_steps in (1, 2):
        problem, alone = Quadratics(), Quadratics()
        optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=inner_steps)
        reference = cats.CATS(torch.optim.SGD(alone.params, lr=0.1), TASKS, inner_steps=inner_steps)
        reference.backward(alone.losses())
        problem.weight.square().sum().backward()  # a regulariser of the user's own
        optimizer.backward({"az": problem.loss(0)})
        (3 * problem.weight).sum().backward()  # and more of it between two calls
        optimizer.backward({"be": problem.loss(1), "gl": problem.loss(2)})
        torch.testing.assert_close(problem.weight.grad, alone.weight.grad + 2 * problem.weight.detach() + 3)
        torch.testing.assert_close(problem.bias.grad, alone.bias.grad)
        optimizer.step()
        reference.step()
        assert optimizer.statistics["dots"] == pytest.approx(reference.statistics["dots"])  # not part of v


@pytest.mark.parametrize("clear", ["optimizer", "by hand", "to zero"])
def test_cleared_gradients_take_the_cycle_along(clear):
    problem, fresh = Quadratics(), Quadratics()
    optimizer, reference = (
        cats.CATS(torch.optim.SGD(p.params, lr=0.1), TASKS, inner_steps=1) for p in (problem, fresh)
    )
    optimizer.backward(problem.losses(shift=5.0))
    if clear == "by hand":
        for p in problem.params:
            p.grad = None
    else:
        optimizer.zero_grad(set_to_none=clear == "optimizer")
    for o, p in ((optimizer, problem), (reference, fresh)):
        o.backward(p.losses())
        o.step()
    assert torch.equal(problem.theta, fresh.theta)
    assert same(optimizer.statistics, reference.statistics)


# --- parameters -------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in TASKS)
        self.double()

    def losses(self, x):
        z = torch.tanh(self.trunk(x))
        return {t: (head(z) - n).square().mean() for n, (t, head) in enumerate(zip(TASKS, self.heads, strict=True))}


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_heads_stay_out_of_the_statistics(inner_steps):
    model, twin = Heads(), Heads()
    x = torch.randn(6, 5, dtype=torch.float64)
    optimizer = cats.CATS(
        torch.optim.SGD(model.parameters(), lr=0.1),
        TASKS,
        inner_steps=inner_steps,
        simplex="lagrangian",
        shared=model.trunk.parameters(),
    )
    take_step(optimizer, model.losses(x))
    sum(twin.losses(x).values()).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad, rtol=1e-12, atol=1e-13)
    if inner_steps == 1:
        trunk = list(twin.trunk.parameters())
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk, retain_graph=True)])
            for loss in twin.losses(x).values()
        ]
        gram = torch.stack(rows) @ torch.stack(rows).T
        statistics = optimizer.statistics
        np.testing.assert_allclose(list(statistics["dots"].values()), gram.sum(1), rtol=1e-12)
        np.testing.assert_allclose(list(statistics["sqnorms"].values()), gram.diagonal(), rtol=1e-12)
        assert statistics["sqnorm"] == pytest.approx(gram.sum().item(), rel=1e-12)


def test_tied_frozen_and_untouched_parameters():
    torch.manual_seed(0)
    embedding, output = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    output.weight = embedding.weight
    frozen, nobodys, only_az = (nn.Parameter(torch.ones(4)) for _ in range(3))
    frozen.requires_grad_(False)
    params = [embedding.weight, frozen, nobodys, only_az]
    optimizer = cats.CATS(torch.optim.AdamW(params, lr=0.1, weight_decay=0.1), ["az", "be"], inner_steps=2)

    def losses():
        logits = output(embedding(torch.tensor([1, 2])) * frozen)
        return {
            "az": (logits * only_az.sum()).logsumexp(-1).mean(),
            "be": lambda: output(embedding(torch.tensor([3]))).square().mean(),
        }

    for _step in range(2):  # one inner, one with per-task gradients
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        optimizer.backward(losses())
        assert nobodys.grad is None and frozen.grad is None
        expected = torch.autograd.grad(sum(v() if callable(v) else v for v in losses().values()) / 2, embedding.weight)
        torch.testing.assert_close(embedding.weight.grad, expected[0])
        assert (only_az.grad is not None) and (only_az.grad != 0).all()
        optimizer.step()
        assert torch.equal(frozen, before[1]) and torch.equal(nobodys, before[2])  # not even decayed
        assert not torch.equal(embedding.weight, before[0])
    frozen.requires_grad_(True)
    for _ in range(2):
        take_step(optimizer, losses())
    assert not torch.equal(frozen, torch.ones(4))


def test_parameter_groups_and_layout():
    problem = Quadratics()
    base = torch.optim.SGD([{"params": [problem.weight], "lr": 0.1}, {"params": [problem.bias]}], lr=0.01)
    optimizer = cats.CATS(base, TASKS, inner_steps=1)
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    start = problem.theta
    gradient = torch.tensor(sum(problem.numpy_loss(problem.start, n)[1] for n in range(3)) / 3)
    take_step(optimizer, problem.losses())
    torch.testing.assert_close(problem.theta, start - torch.tensor([0.1] * 4 + [0.01] * 3) * gradient)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late], "lr": 1.0})
    assert base.param_groups[2]["params"] == [late]
    take_step(optimizer, [loss + late.sum() for loss in problem.losses()])
    torch.testing.assert_close(late.detach(), torch.zeros(2, dtype=torch.float64))  # Σα = 1
    assert min(optimizer.statistics["sqnorms"].values()) > 2  # it counts: its gradient is (1, 1)

    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    conv_optimizer = cats.CATS(torch.optim.AdamW(conv.parameters(), fused=True), 2, inner_steps=1)
    y = conv(torch.ones(1, 2, 4, 4))
    conv_optimizer.backward([y.sum(), y.square().sum()])
    assert conv.weight.grad.stride() == conv.weight.stride()


# --- clipping, closures, precision ------------------------------------------------------------------------------------


def test_clipping_does_not_touch_the_statistics():
    runs = []
    for clip in (None, 1e-3):
        problem = Quadratics()
        optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.0), TASKS, inner_steps=1, multiplier_lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            optimizer.backward(problem.losses())
            if clip:
                assert nn.utils.clip_grad_norm_(problem.params, clip) > 10 * clip
                assert nn.utils.get_total_norm([p.grad for p in problem.params]) < 1.01 * clip
            optimizer.step()
        runs.append((optimizer.alpha, optimizer.multipliers, optimizer.statistics))
    assert same(*runs)


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


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5))

    def loss(self, n):
        x = torch.randn(12, 8, generator=torch.Generator().manual_seed(n)) + n
        return nn.functional.cross_entropy(self.layers(x), torch.arange(12) % 5)


def test_bf16_autocast():
    losses_seen, grads = [], []
    for inner_steps in (1, 10):
        model = TinyNet()
        optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=1e-2), TASKS, inner_steps=inner_steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = {t: (lambda n=n, model=model: model.loss(n)) for n, t in enumerate(TASKS)}
            optimizer.backward(losses)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert grads[-1].dtype == torch.float32
        optimizer.step()
        losses_seen.append(optimizer.statistics["losses"])
    # α_n enters before the bf16 backward at an inner step and after it at the other: both round to 8 bits
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=2e-2 * grads[0].abs().max().item())
    assert losses_seen[0] == losses_seen[1]


@pytest.mark.parametrize("base", ["SGD", "AdamW fused", "Adafactor"])
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_changes_nothing_while_nothing_overflows(base, unscale):
    plain, scaled = TinyNet(), TinyNet()
    options = {"inner_steps": 2, "loss_term": True, "multiplier_lr": 0.1}
    one, two = (cats.CATS(BASES[base](m.parameters()), TASKS, **options) for m in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for _ in range(8):
        one.zero_grad()
        one.backward([plain.loss(n) for n in range(3)])
        two.zero_grad()
        two.backward([scaled.loss(n) for n in range(3)], scaler=scaler)
        if unscale:
            scaler.unscale_(two)
            for m in (plain, scaled):
                nn.utils.clip_grad_norm_(m.parameters(), 0.1)
        one.step()
        scaler.step(two)
        scaler.update()
        # powers of two scale every float exactly
        assert all(map(torch.equal, plain.parameters(), scaled.parameters()))
        assert same(one.statistics, two.statistics) and same(one.alpha, two.alpha)
    assert scaler.get_scale() == 2.0**12


def test_grad_scaler_overflow_skips_and_recovers():
    model = TinyNet()
    optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), fused=True), TASKS, inner_steps=2, max_nonfinite=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-20)
    start = copy.deepcopy(list(model.parameters()))
    skipped = 0
    for _ in range(8):
        optimizer.zero_grad()
        optimizer.backward({t: 64 * model.loss(n) for n, t in enumerate(TASKS)}, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        if optimizer.statistics["step"] == 0:
            skipped += 1
            assert all(map(torch.equal, model.parameters(), start))
            assert optimizer.statistics["skipped"] == optimizer.statistics["nonfinite_in_a_row"] == skipped
            assert set(optimizer.alpha.values()) == {1 / 3}
    assert skipped >= 1 and optimizer.statistics["step"] == 8 - skipped
    assert optimizer.statistics["nonfinite_in_a_row"] == 0


def test_grad_scaler_misuse():
    problem = Quadratics(dtype=torch.float32)
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=1)
    scaler = torch.amp.GradScaler("cpu")
    optimizer.backward([scaler.scale(loss) for loss in problem.losses()])
    with pytest.raises(RuntimeError, match="scaler=scaler"):
        scaler.step(optimizer)
    optimizer.zero_grad()
    optimizer.backward(problem.losses(), scaler=scaler)
    with pytest.raises(RuntimeError, match=r"scaler\.step"):
        optimizer.step()
    twin = Quadratics(dtype=torch.float32)
    reference = cats.CATS(torch.optim.SGD(twin.params, lr=0.1), TASKS, inner_steps=1)
    scaler = torch.amp.GradScaler("cpu")
    optimizer.zero_grad()
    optimizer.backward(problem.losses(), scaler=scaler)
    scaler.step(optimizer)
    take_step(reference, twin.losses())
    assert torch.equal(problem.theta, twin.theta)  # nothing of the failed calls is left
    off = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.zero_grad()
    optimizer.backward(problem.losses(), scaler=off)
    off.step(optimizer)
    take_step(reference, twin.losses())
    assert torch.equal(problem.theta, twin.theta)


@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("scaled", [0, 1])
def test_grad_scaler_of_only_some_micro_batches_is_refused(inner_steps, scaled):
    problem = Quadratics(dtype=torch.float32)
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=inner_steps)
    scalers = [None, None]
    scalers[scaled] = torch.amp.GradScaler("cpu")
    optimizer.backward({"az": problem.loss(0)}, scaler=scalers[0])
    with pytest.raises(RuntimeError, match=r"every backward\(\)"):
        optimizer.backward({"be": problem.loss(1)}, scaler=scalers[1])


def test_per_task_gradients_are_gone_when_the_base_optimizer_steps(monkeypatch):
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.Adam(problem.params), TASKS, inner_steps=1)
    formed, alive = [], []
    original = cats.optim.gradients.task_gradients

    def remember(*args, **kwargs):
        values, grads = original(*args, **kwargs)
        formed.extend(weakref.ref(g) for row in grads for g in row)
        return values, grads

    monkeypatch.setattr(cats.optim.gradients, "task_gradients", remember)
    optimizer.base.register_step_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in formed)))
    take_step(optimizer, problem.losses())
    assert len(formed) == 6 and alive == [0]


# --- what torch expects of an optimizer -------------------------------------------------------------------------------


def test_schedulers():
    def schedule(optimizer):
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[3])

    plain, ours = Quadratics(k=1), Quadratics(k=1)
    reference = torch.optim.Adam(plain.params, lr=0.1)
    optimizer = cats.CATS(torch.optim.Adam(ours.params, lr=0.1), 1, inner_steps=2)
    assert isinstance(optimizer, torch.optim.Optimizer)
    a = schedule(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        b = schedule(optimizer)
        for _ in range(8):
            reference.zero_grad()
            plain.loss(0).backward()
            reference.step()
            take_step(optimizer, ours.losses())
            b.step()
            a.step()
            assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
            assert torch.equal(plain.theta, ours.theta)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        for metric in (1.0, 2.0):
            plateau.step(metric)
    assert optimizer.param_groups[0]["lr"] < reference.param_groups[0]["lr"]


def test_hooks():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS)
    calls = []
    optimizer.register_step_pre_hook(lambda o, *_: calls.append(("pre", o)))
    optimizer.register_step_post_hook(lambda o, *_: calls.append(("post", o)))
    optimizer.base.register_step_pre_hook(lambda o, *_: calls.append(("base", o)))
    take_step(optimizer, problem.losses())
    assert calls == [("pre", optimizer), ("base", optimizer.base), ("post", optimizer)]
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, s: calls.append(s.pop("note")))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[3:] == ["save", 1, "loaded"]


def options_of(simplex):
    return {"inner_steps": 3, "simplex": simplex, "loss_term": True, "alpha_lr": 0.3, "multiplier_lr": 0.1}


@pytest.mark.parametrize("simplex", ["softmax", "lagrangian"])
@pytest.mark.parametrize("base", BASES)
def test_state_dict_continues_bitwise(base, simplex):
    problem, resumed = Quadratics(dtype=torch.float32), Quadratics(dtype=torch.float32)
    optimizer = cats.CATS(BASES[base](problem.params), TASKS, **options_of(simplex))
    for _ in range(4):  # in the middle of the second cycle
        take_step(optimizer, problem.losses())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    with torch.no_grad():
        for p, q in zip(resumed.params, problem.params, strict=True):
            p.copy_(q)
    file.seek(0)
    other = cats.CATS(BASES[base](resumed.params), TASKS, **options_of(simplex))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.param_groups is other.base.param_groups and other.state is other.base.state
    assert same(other.statistics, optimizer.statistics)
    for _ in range(5):
        assert optimizer.needs_task_gradients == other.needs_task_gradients
        take_step(optimizer, problem.losses())
        take_step(other, resumed.losses())
        assert torch.equal(problem.theta, resumed.theta)
        assert same(optimizer.state_dict(), other.state_dict())


def test_load_state_dict_refuses_what_does_not_fit():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS)
    with pytest.raises(ValueError, match=r"multitask.*\.base"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    other = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), ["az", "gl", "be"])
    with pytest.raises(ValueError, match="is for tasks"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("what", ["weighting", "base"])
def test_a_state_that_does_not_fit_changes_nothing(what):
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=1)
    take_step(optimizer, problem.losses())
    before = copy.deepcopy(optimizer.state_dict())
    if what == "weighting":
        other = cats.CATS(torch.optim.SGD(problem.params, lr=0.2), TASKS, simplex="lagrangian")
    else:  # another number of parameter groups
        groups = [{"params": [p]} for p in problem.params]
        other = cats.CATS(torch.optim.SGD(groups, lr=0.2), TASKS)
    with pytest.raises(ValueError, match="simplex" if what == "weighting" else "parameter groups"):
        optimizer.load_state_dict(other.state_dict())
    assert same(optimizer.state_dict(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_continue_bitwise(copied):
    problem = Quadratics()
    optimizer = cats.CATS(
        torch.optim.Adam(problem.params, lr=0.1), TASKS, shared=[problem.weight], **options_of("softmax")
    )
    torch.optim.lr_scheduler.StepLR(optimizer, 10)  # wraps step() in something that cannot be pickled
    optimizer.register_step_post_hook(lambda *_: None)
    for _ in range(2):
        take_step(optimizer, problem.losses())
    optimizer.backward(problem.losses())  # torch copies no p.grad, hence nothing of what belongs to it
    twin, other = copied((problem, optimizer))
    assert other.param_groups[0]["params"][0] is twin.weight is not problem.weight
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        other.step()
    for _ in range(4):
        take_step(optimizer, problem.losses())
        take_step(other, twin.losses())
    assert torch.equal(problem.theta, twin.theta)
    assert same(optimizer.state_dict(), other.state_dict())


def test_repr_names_the_tasks_and_the_base():
    optimizer = cats.CATS(torch.optim.SGD(Quadratics().params, lr=0.1), TASKS)
    assert "be" in repr(optimizer) and "SGD" in repr(optimizer)


# --- what is not finite -----------------------------------------------------------------------------------------------


def spoiled(problem, n, kind):
    """The losses, that of task n with something wrong."""
    losses = problem.losses()
    if kind == "loss nan":
        losses[n] = losses[n] * float("nan")
    elif kind == "loss inf":
        losses[n] = losses[n] + float("inf")  # the gradient stays finite
    else:
        losses[n] = losses[n] + (problem.bias * 0).abs().sum().sqrt()  # adds 0; the gradient is 0/0
    return losses


@pytest.mark.parametrize("kind", ["loss nan", "loss inf", "gradient nan"])
@pytest.mark.parametrize("weighting", ["softmax", "lagrangian", "static", "gram"])
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_nothing_moves_when_something_is_not_finite(kind, weighting, taken):
    def build(problem):
        base = torch.optim.Adam(problem.params, lr=0.1)
        if weighting == "static":
            return cats.MultiTask(base, TASKS, cats.weighting.Static())
        if weighting == "gram":
            return cats.MultiTask(base, TASKS, RunningNorm())
        return cats.CATS(base, TASKS, **options_of(weighting))

    problem, clean = Quadratics(), Quadratics()
    optimizer, reference = build(problem), build(clean)
    for _ in range(taken):  # with inner_steps = 3, taken = 2 makes it the step of α
        take_step(optimizer, problem.losses())
        take_step(reference, clean.losses())
    for n in (1, 2):
        optimizer.zero_grad()
        optimizer.backward(spoiled(problem, n, kind))
        if taken:
            nn.utils.clip_grad_norm_(problem.params, 1.0)
        optimizer.step()
        before, after = reference.state_dict(), optimizer.state_dict()
        assert torch.equal(problem.theta, clean.theta)
        assert same(before["state"], after["state"])
        assert same(before["multitask"]["weighting"], after["multitask"]["weighting"])
        assert same(optimizer.alpha, reference.alpha) and same(optimizer.multipliers, reference.multipliers)
        assert optimizer.needs_task_gradients == reference.needs_task_gradients
    statistics = optimizer.statistics
    assert (statistics["step"], statistics["skipped"], statistics["nonfinite_in_a_row"]) == (taken, 2, 2)
    for _ in range(4):  # training goes on as if nothing had been
        take_step(optimizer, problem.losses())
        take_step(reference, clean.losses())
    assert torch.equal(problem.theta, clean.theta) and same(optimizer.alpha, reference.alpha)
    assert optimizer.statistics["nonfinite_in_a_row"] == 0 and optimizer.statistics["skipped"] == 2


def test_non_finite_gradient_of_a_head():
    model = Heads()
    optimizer = cats.CATS(
        torch.optim.SGD(model.parameters(), lr=0.1), TASKS, inner_steps=1, shared=model.trunk.parameters()
    )
    before = copy.deepcopy(model.state_dict())
    losses = model.losses(torch.ones(2, 5, dtype=torch.float64))
    losses["be"] = losses["be"] + (model.heads[1].bias * 0).abs().sum().sqrt()
    take_step(optimizer, losses)
    assert same(dict(before), dict(model.state_dict())) and optimizer.statistics["skipped"] == 1


@pytest.mark.parametrize("kind", ["loss nan", "gradient nan"])
@pytest.mark.parametrize("weighting", ["cats", "static"])
def test_too_many_in_a_row_names_the_task(kind, weighting):
    problem = Quadratics()
    base = torch.optim.SGD(problem.params, lr=0.1)
    rule = cats.weighting.Static() if weighting == "static" else cats.weighting.CATS(inner_steps=100)
    optimizer = cats.MultiTask(base, TASKS, rule, max_nonfinite=3)
    for attempt in range(2):
        assert not optimizer.needs_task_gradients, attempt
        take_step(optimizer, spoiled(problem, 1, kind))
    assert optimizer.needs_task_gradients  # the last attempt looks more closely
    optimizer.zero_grad()
    optimizer.backward(spoiled(problem, 1, kind))
    with pytest.raises(RuntimeError, match=r"3 steps in a row .* of task 'be'"):
        optimizer.step()
    assert np.array_equal(problem.theta, problem.start)
    take_step(optimizer, problem.losses())  # the caller may carry on
    assert optimizer.statistics["step"] == 1 and not optimizer.needs_task_gradients


def test_the_closer_look_does_not_move_alpha():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, loss_term=True, max_nonfinite=2)
    take_step(optimizer, spoiled(problem, 0, "loss nan"))
    assert optimizer.needs_task_gradients
    take_step(optimizer, problem.losses())
    assert optimizer.statistics["step"] == 1 and set(optimizer.alpha.values()) == {1 / 3}


# --- weightings that need the Gram matrix -----------------------------------------------------------------------------


class RunningNorm(nn.Module):
    """A stateful rule shaped like a TorchJD Weighting: w_n = 1 / running mean of ‖g_n‖², and something off-diagonal."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, gram):
        assert gram.dtype == torch.float64 and gram.device.type == "cpu" and not gram.requires_grad
        assert torch.isfinite(gram).all()  # solvers do not survive anything else
        norms = gram.diagonal().clone()
        self.mean = norms if self.mean is None else (self.mean + norms) / 2
        return 1 / self.mean + 0.01 * torch.tanh(gram.sum(1))


def test_gram_weighting_step_by_step():
    problem = Quadratics()
    rule = RunningNorm()
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, rule)
    theta, mean = problem.start.copy(), None
    for _ in range(5):
        assert optimizer.needs_task_gradients
        rows = np.array([problem.numpy_loss(theta, n)[1] for n in range(3)])
        gram = rows @ rows.T
        mean = np.diag(gram) if mean is None else (mean + np.diag(gram)) / 2
        w = 1 / mean + 0.01 * np.tanh(gram.sum(1))
        theta = theta - 0.05 * w @ rows
        take_step(optimizer, problem.losses())
        np.testing.assert_allclose(problem.theta, theta, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(list(optimizer.alpha.values()), w, rtol=1e-11)
        np.testing.assert_allclose(list(optimizer.statistics["dots"].values()), gram @ w, rtol=1e-11)
        np.testing.assert_allclose(list(optimizer.statistics["sqnorms"].values()), np.diag(gram), rtol=1e-11)
        assert optimizer.statistics["sqnorm"] == pytest.approx(w @ gram @ w)


def test_gram_weighting_accumulates_and_resumes():
    whole, parts, resumed = (Quadratics() for _ in range(3))
    one, many = (cats.MultiTask(torch.optim.SGD(p.params, lr=0.05), TASKS, RunningNorm()) for p in (whole, parts))
    for _ in range(4):
        take_step(one, whole.losses())
        for shift in (1.0, 0.0):  # the first is abandoned: the rule's state must not remember it
            many.zero_grad()
            for w in (0.25, 0.75):
                many.backward([w * loss for loss in parts.losses(shift=shift)])
        many.step()
        torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-12, atol=1e-13)
    other = cats.MultiTask(torch.optim.SGD(resumed.params, lr=0.05), TASKS, RunningNorm())
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(other.alpha, one.alpha)
    with torch.no_grad():
        for p, q in zip(resumed.params, whole.params, strict=True):
            p.copy_(q)
    take_step(one, whole.losses())
    take_step(other, resumed.losses())
    assert torch.equal(whole.theta, resumed.theta)


def test_gram_weighting_of_shared_parameters_with_heads_and_scaler():
    model = Heads().float()
    x = torch.randn(6, 5)
    seen = []
    optimizer = cats.MultiTask(
        torch.optim.SGD(model.parameters(), lr=0.1),
        TASKS,
        lambda gram: seen.append(gram) or torch.tensor([1.0, 2.0, 3.0]),
        shared=model.trunk.parameters(),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trunk = list(model.trunk.parameters())
    rows = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in model.losses(x).values()]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    head = model.heads[1].bias.detach().clone()
    (slope,) = torch.autograd.grad(model.losses(x)["be"], model.heads[1].bias)
    optimizer.backward(model.losses(x), scaler=scaler)
    scaler.step(optimizer)
    torch.testing.assert_close(seen[0], rows @ rows.T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model.heads[1].bias.detach(), head - 0.1 * 2 * slope)


def test_weights_of_the_wrong_length():
    problem = Quadratics()
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.1), TASKS, lambda gram: torch.ones(2))
    with pytest.raises(ValueError, match=r"\(2,\) for 3 tasks"):
        optimizer.backward(problem.losses())


@pytest.mark.parametrize("name", ["MeanWeighting", "MGDAWeighting", "PCGradWeighting", "AlignedMTLWeighting"])
def test_torchjd_weightings(name):
    aggregation = pytest.importorskip("torchjd.aggregation")
    problem = Quadratics()
    rule = getattr(aggregation, name)()
    torch.manual_seed(0)
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, rule)
    rows = torch.tensor(np.array([problem.numpy_loss(problem.start, n)[1] for n in range(3)]))
    take_step(optimizer, problem.losses())
    torch.manual_seed(0)
    expected = getattr(aggregation, name)()(rows @ rows.T)
    torch.testing.assert_close(torch.tensor(list(optimizer.alpha.values())).double(), expected.double())
    moved = torch.tensor(problem.start) - 0.05 * expected.double() @ rows
    torch.testing.assert_close(problem.theta, moved, rtol=1e-10, atol=1e-11)
    optimizer.load_state_dict(optimizer.state_dict())


# --- clear errors -----------------------------------------------------------------------------------------------------


def sgd():
    return torch.optim.SGD(Quadratics().params, lr=0.1)


class GramAcrossHalves(cats.weighting.Weighting):
    needs_gram = cross_batch = True


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: cats.CATS(torch.optim.SGD, TASKS), TypeError, "Optimizer instance"),
        (lambda: cats.CATS([torch.zeros(2)], TASKS), TypeError, "Optimizer instance, got list"),
        (lambda: cats.CATS(cats.CATS(sgd(), 2), 2), TypeError, "already"),
        (lambda: cats.CATS(torch.optim.LBFGS(Quadratics().params), 2), TypeError, "LBFGS.*closure"),
        (lambda: cats.CATS(sgd(), ["az", "be", "az"]), ValueError, "'az' is named twice"),
        (lambda: cats.CATS(sgd(), []), ValueError, "at least one task"),
        (lambda: cats.CATS(sgd(), 0), TypeError, "positive number or names"),
        (lambda: cats.CATS(sgd(), "az"), TypeError, "names, got 'az'"),
        (lambda: cats.CATS(sgd(), [1.5]), TypeError, "name must be"),
        (lambda: cats.CATS(sgd(), 2, shared=[torch.zeros(3)]), ValueError, r"shared\[0\].*\(3,\).*not a parameter"),
        (lambda: cats.CATS(sgd(), 2, shared=[]), ValueError, "shared is empty"),
        (lambda: cats.CATS(sgd(), 2, shared=torch.zeros(3)), TypeError, "iterable of parameters"),
        (lambda: cats.CATS(sgd(), 2, engine="jvp"), ValueError, "'jvp' does not exist; available: 'auto'"),
        (lambda: cats.CATS(sgd(), 2, backend="abacus"), ValueError, "no backend 'abacus'"),
        (lambda: cats.MultiTask(sgd(), 2, GramAcrossHalves()), ValueError, "cannot be cross_batch"),
        (lambda: cats.CATS(sgd(), 2, max_nonfinite=0), ValueError, "max_nonfinite"),
        (lambda: cats.CATS(sgd(), 2, simplex="box"), ValueError, "simplex"),
        (lambda: cats.MultiTask(sgd(), 2, cats.weighting.Static([1])), ValueError, "1 weights for 2 tasks"),
        (lambda: cats.MultiTask(sgd(), 2, [0.5, 0.5]), TypeError, "callable"),
    ],
)
def test_construction_errors(build, error, match):
    with pytest.raises(error, match=match) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_backend_that_cannot_work_here_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(cats.ops, "backends", lambda: {"reference": None, "native": "not compiled"})
    with pytest.raises(RuntimeError, match="'native' cannot be used here: not compiled"):
        cats.CATS(sgd(), 2, backend="native")
    cats.CATS(sgd(), 2, backend="reference")


def leaf():
    return torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("losses", "error", "match"),
    [
        ({"xx": leaf()}, ValueError, r"unknown task 'xx'; the tasks are \['az', 'be', 'gl'\]"),
        ([leaf(), leaf()], ValueError, "2 losses for 3 tasks"),
        ({}, ValueError, "at least one task"),
        (leaf(), TypeError, "sequence of losses, got a tensor"),
        ({"be": 1.0}, TypeError, "task 'be'.*float"),
        ({"be": torch.ones(2, requires_grad=True)}, ValueError, r"task 'be'.*\(2,\)"),
        ({"be": torch.ones(())}, ValueError, "task 'be'.*require grad"),
        ({"be": lambda: None}, TypeError, "task 'be'.*NoneType"),
        ({"be": (leaf(), leaf())}, ValueError, "task 'be'.*single loss, got 2"),
    ],
)
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_loss_errors(losses, error, match, inner_steps):
    optimizer = cats.CATS(sgd(), TASKS, inner_steps=inner_steps)
    with pytest.raises(error, match=match) as caught:
        optimizer.backward(losses)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        optimizer.step()


def test_cross_batch_wants_pairs_where_it_needs_them():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=2, cross_batch=True)
    take_step(optimizer, problem.losses())
    with pytest.raises(ValueError, match=r"task 'az'.*pair of losses.*halves"):
        optimizer.backward(problem.losses())
    with pytest.raises(ValueError, match=r"task 'az'.*single loss or a pair, got 3"):
        optimizer.backward([[loss] * 3 for loss in problem.losses()])


def test_nothing_to_train():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=1, shared=[problem.bias])
    problem.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="no shared parameter requires grad"):
        optimizer.backward(problem.losses())
    problem.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the optimizer requires grad"):
        optimizer.backward(problem.losses())


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
    optimizer.statistics["losses"].clear()  # a copy
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
