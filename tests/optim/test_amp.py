"""Clipping, autocast and GradScaler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import cats
import cats.accumulate
from tests.optim.common import BASES, TASKS, Quadratics, TinyNet, same, take_step


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
    # Without per-task gradients, α_n multiplies the loss before the bf16 backward pass; with them, the gradients after
    # it. bf16 rounds to 8 bits.
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
        # exact: scaling by powers of two does not round
        assert all(map(torch.equal, plain.parameters(), scaled.parameters()))
        assert same(one.statistics, two.statistics) and same(one.alpha, two.alpha)
    assert scaler.get_scale() == 2.0**12


def test_a_post_hook_of_step_may_clear_the_gradients():
    model = TinyNet()
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS)
    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(2):
        optimizer.backward([model.loss(n) for n in range(3)], scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        assert all(p.grad is None for p in model.parameters())
    assert optimizer.statistics["step"] == 2 and not hasattr(optimizer, "found_inf")


def test_grad_scaler_overflow_skips_and_recovers():
    model = TinyNet()
    optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), fused=True), TASKS, inner_steps=2, max_nonfinite=1)
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
            # the scaler looks for its scale, so max_nonfinite does not count these steps
            assert (optimizer.statistics["skipped"], optimizer.statistics["nonfinite_in_a_row"]) == (skipped, 0)
            assert set(optimizer.alpha.values()) == {1 / 3}
    assert skipped >= 1 and optimizer.statistics["step"] == 8 - skipped
    assert optimizer.statistics["nonfinite_in_a_row"] == 0


@pytest.mark.parametrize(("spoil", "skips"), [("loss", 3), ("gradient", 13)])
def test_grad_scaler_does_not_hide_what_is_not_finite(spoil, skips):
    """A loss that is not finite counts at once, a gradient only when the scale, 2¹⁰ at first, has come down to 1."""
    model = TinyNet()
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS, max_nonfinite=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def take():
        losses = [model.loss(n) for n in range(3)]
        zero = (next(model.parameters()) * 0).abs().sum()
        losses[1] = losses[1] * float("nan") if spoil == "loss" else losses[1] + zero.sqrt()  # its gradient is 0/0
        optimizer.zero_grad()
        optimizer.backward(losses, scaler=scaler)
        scaler.step(optimizer)

    for _ in range(skips - 1):
        take()
        scaler.update()
    with pytest.raises(cats.NonFiniteError, match=r"3 steps in a row.* task 'be'"):
        take()
    assert optimizer.statistics["skipped"] == skips


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_no_loss_depends_on_the_parameters(scaled, inner_steps):
    model, idle = TinyNet(), nn.Linear(2, 2)
    optimizer = cats.CATS(torch.optim.SGD(idle.parameters(), lr=0.1), TASKS, inner_steps=inner_steps)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    optimizer.backward([model.loss(n) for n in range(3)], scaler=scaler)
    with pytest.raises(RuntimeError, match="no loss depends on any of them"):
        scaler.step(optimizer)
    assert optimizer.statistics["step"] == 0 and not hasattr(optimizer, "found_inf")


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
    assert torch.equal(problem.theta, twin.theta)  # the failed calls left nothing behind
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
