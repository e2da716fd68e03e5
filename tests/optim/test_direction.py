"""<g_n, d> along directions that the base optimizer remembers, with every engine."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

import cats
from cats.engines.one_pass import run, segments
from tests.optim.common import TASKS, Heads, Quadratics, TinyNet, same, take_step
from tests.optim.test_engines import IDS, B, K, Tiny, data, losses_of

ENGINES = ["per_task", "two_pass", "forward_mode", "one_pass"]
# What PyTorch's documentation says about Adam's step and SGD's momentum, written for one parameter of step t.
BASES = {
    "groups": lambda p: torch.optim.AdamW(
        [{"params": p[::2], "betas": (0.5, 0.9), "eps": 1e-3, "lr": 0.03}, {"params": p[1::2]}], lr=0.01, fused=True
    ),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.3),
    "maximize": lambda p: torch.optim.Adam(p, lr=0.02, maximize=True),
}


CASES = [("groups", "preconditioned"), ("groups", "update"), ("groups", "momentum"), ("SGD", "momentum")]


class Remembered:
    """The directions, from the gradients of all steps. Not from the optimizer's state."""

    def __init__(self, base):
        self.groups = {p: group for group in base.param_groups for p in group["params"]}
        self.adam = isinstance(base, torch.optim.Adam | torch.optim.AdamW)  # in torch 2.6 two classes
        self.past = {p: [] for p in self.groups}

    def note(self):
        for p, past in self.past.items():
            if p.grad is not None:
                past.append(p.grad.double().clone())

    def of(self, p, direction):
        past, group = self.past[p], self.groups[p]
        if not past:
            return torch.zeros_like(p, dtype=torch.float64)
        t = len(past)
        if not self.adam:
            mu, rest = group["momentum"], 1 - group["dampening"]
            return sum(mu ** (t - 1 - k) * (rest if k else 1) * g for k, g in enumerate(past))
        beta1, beta2 = group["betas"]
        m = sum((1 - beta1) * beta1 ** (t - 1 - k) * g for k, g in enumerate(past))
        if direction == "momentum":
            return m
        squares = [
            sum((1 - beta2) * beta2 ** (s - 1 - k) * g**2 for k, g in enumerate(past[:s])) for s in range(1, t + 1)
        ]
        v = torch.stack(squares).amax(0) if group["amsgrad"] else squares[-1]
        rate = group["lr"] / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        return rate if direction == "preconditioned" else rate * m / (1 - beta1**t)


def gradients(model, x, y):
    """{task: its gradient by parameter}, by plain autograd."""
    params = list(model.parameters())
    losses = losses_of(model, x, y)
    rows = [torch.autograd.grad(losses[n == IDS].mean(), params, retain_graph=True) for n in range(K)]
    return [dict(zip(params, row, strict=True)) for row in rows]


def numbers(named):
    return torch.tensor([*named.values()], dtype=torch.float64)


def inner(rows, remembered, direction, shared, alpha=None):
    """<g_n, d> of each task."""
    found = {p: remembered.of(p, direction) for p in shared}
    if direction == "preconditioned":
        found = {p: rate * sum(a * row[p] for a, row in zip(alpha, rows, strict=True)) for p, rate in found.items()}
    return [sum(float((row[p] * d).sum()) for p, d in found.items()) for row in rows]


def step(opt, model, x, y, calls=1, **options):
    """A step whose losses are sums over the calls, so that the gradients are those of the whole batch."""
    opt.zero_grad()
    for part in torch.arange(B).tensor_split(calls):

        def losses(part=part):
            counts = torch.bincount(IDS)[IDS[part]]
            return losses_of(model, x[part], y[part]) / (counts * x.shape[1])[:, None]

        lazy = opt._engines.asked == "forward_mode"
        opt.backward(losses if lazy else losses(), tasks=IDS[part], reduction="sum", **options)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("engine", [*ENGINES, "segments"])
@pytest.mark.parametrize(("base", "direction"), CASES)
def test_every_engine_gives_the_inner_products(base, direction, engine, calls, monkeypatch):
    if engine == "segments":  # for such small layers too
        monkeypatch.setattr(segments, "_ROWS", 1)
        monkeypatch.setattr(segments, "_MULTIPLICATIONS", {"cpu": 1})
        monkeypatch.setattr(segments, "_ELEMENTS", 60)
        engine = "one_pass"
    model = Tiny()
    params, shared = list(model.parameters()), list(model.parameters())[1:]
    opt = cats.CATS(
        BASES[base](params), K, inner_steps=1, direction=direction, engine=engine, model=model, shared=shared
    )
    known, a = Remembered(opt.base), torch.zeros(K, dtype=torch.float64)
    for number in range(4):
        x, y = data(number)
        rows = gradients(model, x, y)
        assert opt.needs_task_gradients == (number > 0)
        step(opt, model, x, y, calls)
        alpha = numbers(opt.alpha)
        expected = torch.tensor(inner(rows, known, direction, shared, alpha), dtype=torch.float64)
        known.note()
        opt.step()
        if number == 0:
            assert not opt.statistics["dots"] and len(set(opt.alpha.values())) == 1
            continue
        torch.testing.assert_close(numbers(opt.statistics["dots"]), expected, rtol=1e-9, atol=1e-12)
        total = float(alpha @ expected)
        assert opt.statistics["sqnorm"] == pytest.approx(total) and opt.statistics["engine"] == engine
        if total > 0:
            a = 0.9 * a + 0.1 * 0.5 * (1 - (expected / total).clamp(-5, 10))
        torch.testing.assert_close(numbers(opt.alpha), 0.9 * a.softmax(0) + 0.1 / K)
    assert opt.statistics["task_gradient_steps"] == 3 and a.abs().max() > 0


@pytest.mark.parametrize(("base", "direction"), [("amsgrad", "update"), ("maximize", "momentum")])
def test_options_of_the_base_optimizer(base, direction):
    model = Tiny()
    opt = cats.CATS(BASES[base](list(model.parameters())), K, inner_steps=1, direction=direction, reduction="mean")
    known = Remembered(opt.base)
    for number in range(4):
        x, y = data(number)
        expected = inner(gradients(model, x, y), known, direction, list(model.parameters()))
        step(opt, model, x, y)
        known.note()
        opt.step()
    # The remembered gradients are those of p.grad, whatever the optimizer makes of their sign.
    assert list(opt.statistics["dots"].values()) == pytest.approx(expected, rel=1e-9)


def test_parameters_without_a_gradient():
    """A head is trained by its task alone. Here be has no loss at first, so its head has no momentum yet."""
    model, x = Heads(), torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    opt = cats.CATS(torch.optim.AdamW(model.parameters(), lr=0.01), TASKS, inner_steps=1, direction="update")
    losses = model.losses(x)
    take_step(opt, {"az": losses["az"], "gl": losses["gl"]})
    state = opt.base.state
    assert model.heads[1].weight not in state
    losses = model.losses(x)
    expected = {}
    for task, loss in losses.items():
        found = torch.autograd.grad(loss, list(state), retain_graph=True, allow_unused=True)
        # After one step, Adam's step is lr g / (|g| + eps).
        expected[task] = sum(
            float((0 if g is None else g * 0.01 * s["exp_avg"] / 0.1 / ((s["exp_avg"] / 0.1).abs() + 1e-8)).sum())
            for g, s in zip(found, state.values(), strict=True)
            if g is not None
        )
    take_step(opt, losses)
    assert opt.statistics["dots"] == pytest.approx(expected)
    assert len(state) == len(list(model.parameters()))  # reading made no entries, and the last step made the head's


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", ["preconditioned", "momentum", "update"])
def test_a_scaler_changes_nothing(direction, engine):
    seen = []
    for scale in (None, 2.0**12):
        model = Tiny().float()
        base = torch.optim.AdamW(model.parameters(), lr=0.01)
        opt = cats.CATS(base, K, inner_steps=2, direction=direction, engine=engine, model=model)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        for number in range(4):
            step(opt, model, *data(number), calls=2, scaler=scaler)
            if scaler is None:
                opt.step()
            else:
                scaler.step(opt)
                scaler.update()
        seen.append(opt.statistics["dots"])
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)  # float32, and sums in another order


def test_no_layer_waits_for_the_last_call(monkeypatch):
    """Here calls 1 to 3 compute <g_n, d> in step 2, calls 4 to 6 in step 4. Calls 1 and 4 check the graph along ḡ."""
    alive, held = weakref.WeakSet(), []

    class Tracked(run.Record):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            alive.add(self)
            held.append(len(alive))

    monkeypatch.setattr(run, "Record", Tracked)
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(5, 5), nn.Tanh())))
    base = torch.optim.AdamW(model.parameters(), lr=0.1)
    opt = cats.CATS(base, 2, inner_steps=2, engine="one_pass", direction="momentum")
    for _ in range(4):
        opt.zero_grad()
        for _ in range(3):
            opt.backward(model(torch.randn(40, 5)).square().mean(1), tasks=torch.arange(40) % 2)
        opt.step()
    assert held == ([1, 2, 3, 4, 5, 6] + [1] * 12) * 2


def test_other_gradients_in_grad_are_no_part_of_the_numbers():
    seen = []
    for other in (False, True):
        model = Tiny()
        base = torch.optim.AdamW(model.parameters(), lr=0.01)
        opt = cats.CATS(base, K, inner_steps=2, direction="momentum", engine="one_pass", model=model)
        for number in range(2):
            opt.zero_grad()
            if other and number:
                for p in model.parameters():
                    p.grad = torch.ones_like(p)
            opt.backward(losses_of(model, *data(number)), tasks=IDS)
            opt.step()
        seen.append(opt.statistics["dots"])
    assert seen[0] == pytest.approx(seen[1], rel=1e-9)


@pytest.mark.parametrize("direction", ["preconditioned", "momentum", "update"])
def test_saved_in_the_middle_it_continues_bit_for_bit(direction, tmp_path):
    def start():
        model = TinyNet()
        base = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
        return model, cats.CATS(base, TASKS, inner_steps=2, direction=direction)

    model, opt = start()
    for number in range(9):
        if number == 3:
            torch.save((model.state_dict(), opt.state_dict()), tmp_path / "saved.pt")
        take_step(opt, [model.loss(n) for n in range(3)])
    again, resumed = start()
    weights, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for _ in range(6):
        take_step(resumed, [again.loss(n) for n in range(3)])
    assert same(resumed.state_dict(), opt.state_dict()) and same(again.state_dict(), model.state_dict())


def test_state_that_has_learnt_nothing_yet():
    """As torch.distributed.checkpoint makes it, to load into: no division by 1 − β⁰ = 0."""
    model = TinyNet()
    opt = cats.CATS(torch.optim.AdamW(model.parameters(), lr=0.0), TASKS, inner_steps=1, direction="update")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    opt.param_groups[0]["lr"] = 0.01
    for number in range(2):
        take_step(opt, [model.loss(n) for n in range(3)])
        assert len(set(opt.alpha.values())) == (1 if number == 0 else 3) and opt.statistics["skipped"] == 0


def test_no_direction_of_descent_leaves_the_weights():
    """After a step back, the momentum points uphill: <ḡ, d> is negative."""
    w = nn.Parameter(torch.tensor([3.0]))
    opt = cats.CATS(torch.optim.SGD([w], lr=0.0, momentum=0.9), 2, inner_steps=1, direction="momentum")
    take_step(opt, [w.sum() * 2, w.sum()])
    take_step(opt, [-w.sum() * 2, -w.sum()])
    assert opt.statistics["sqnorm"] < 0 and opt.alpha == {0: 0.5, 1: 0.5}
    for _ in range(2):
        take_step(opt, [w.sum() * 2, w.sum()])
    assert opt.alpha[0] < opt.alpha[1]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: cats.CATS(torch.optim.SGD(p, lr=0.1), 2, direction="momentum"), "running mean.*SGD has none"),
        (lambda p: cats.CATS(torch.optim.Adafactor(p), 2, direction="momentum"), "Adafactor has none"),
        (lambda p: cats.CATS(torch.optim.SGD(p, lr=0.1, momentum=0.9), 2, direction="preconditioned"), "Adam or AdamW"),
        (
            lambda p: cats.CATS(torch.optim.Adam(p), 2, direction="newton"),
            "must be one of gradient, .*'newton'",
        ),
        (lambda p: cats.CATS(torch.optim.Adam(p), 2, direction="update", simplex="softmax"), "simplex='proximal'"),
        (lambda p: cats.CATS(torch.optim.Adam(p), 2, direction="update", cross_batch=True), "cross_batch needs"),
        (lambda p: cats.MultiTask(torch.optim.Adam(p), 2, Backwards()), "direction='backwards' does not exist"),
        (lambda p: cats.MultiTask(torch.optim.Adam(p), 2, GramAlongMomentum()), "with needs_gram needs direction="),
    ],
)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make([nn.Parameter(torch.ones(2))])


class Backwards(cats.weighting.Static):
    direction = "backwards"

    def __init__(self):
        super().__init__([1.0, 1.0])


class GramAlongMomentum(cats.weighting.Weighting):
    needs_gram, direction = True, "momentum"


class WithoutMean(torch.optim.Optimizer):
    """Has betas and a state, as schedule-free optimizers do, but no running mean of the gradients."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.999)})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("z", p.detach().clone())

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


def test_a_base_optimizer_that_never_has_a_running_mean_is_refused():
    problem = Quadratics()
    optimizer = cats.CATS(WithoutMean(problem.params), TASKS, inner_steps=1, direction="momentum")
    take_step(optimizer, problem.losses())
    with pytest.raises(ValueError, match=r"direction='momentum' needs a running mean .* WithoutMean keeps none"):
        take_step(optimizer, problem.losses())
