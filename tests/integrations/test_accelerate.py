"""Accelerate with several tasks, compared with a plain loop."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

import cats
from tests.distributed.common import needs_gloo
from tests.integrations.common import run_with_torchrun
from tests.integrations.plain import (
    BATCHES,
    TASKS,
    backward,
    check_same,
    loader,
    losses_of,
    network,
    optimizer_of,
    plain_loop,
    schedule_of,
)
from tests.optim.common import same

accelerate = pytest.importorskip("accelerate")

from cats.integrations.accelerate import Accelerator  # noqa: E402

SCALE = 2.0**10


def parts(rows=4):
    net = network()
    optimizer = optimizer_of(net)
    return net, optimizer, schedule_of(optimizer), loader(rows=rows)


def accelerator_of(accumulate=1, precision="no", **settings):
    return Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision, **settings)


def train(accelerator, prepared, form="tasks", steps=5, clip=0.0, epochs=2, first=0):
    net, optimizer, schedule, loader = prepared
    for _ in range(epochs):
        for batch in accelerator.skip_first_batches(loader, first):
            with accelerator.accumulate(net):
                backward(optimizer, losses_of(net, batch, form))
                if clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                if accelerator.sync_gradients:
                    schedule.step()
                optimizer.zero_grad()
            if optimizer.statistics["step"] == steps:
                return
        first = 0
    raise AssertionError("the data have too few batches")


@pytest.mark.parametrize("form", ["tasks", "entries"])
@pytest.mark.parametrize(("accumulate", "clip", "bf16"), [(1, 0.0, False), (3, 0.1, False), (3, 0.1, True)])
def test_accelerate_is_the_plain_loop_bit_for_bit(accumulate, clip, bf16, form):
    accelerator = accelerator_of(accumulate, "bf16" if bf16 else "no")
    prepared = net, optimizer, *_ = accelerator.prepare(*parts())
    assert isinstance(optimizer, accelerate.optimizer.AcceleratedOptimizer)
    train(accelerator, prepared, form, clip=clip)
    # An epoch has 3 groups of 3 batches, and one batch that is left.
    check_same(net, optimizer, *plain_loop(form, accumulate, clip, torch.bfloat16 if bf16 else None))
    assert optimizer.alpha == optimizer.optimizer.alpha


@pytest.mark.parametrize("form", ["tasks", "entries"])
def test_save_state_and_load_state_continue_bit_for_bit(form, tmp_path):
    accelerator = accelerator_of()
    prepared = accelerator.prepare(*parts())
    train(accelerator, prepared, form, steps=3)
    accelerator.save_state(tmp_path)
    accelerator.free_memory()
    other = accelerator_of()
    prepared = net, optimizer, *_ = other.prepare(*parts())
    other.load_state(tmp_path)
    train(other, prepared, form, first=3)
    check_same(net, optimizer, *plain_loop(form))


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_fp16_with_a_scaler(clip, tmp_path, monkeypatch):
    """On the CPU, where accelerate itself does not allow fp16: the scaler is given to it."""
    accelerator = accelerator_of()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    accelerator.native_amp = True
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")  # clip_grad_norm_() then unscales
    net, optimizer, schedule, loader = parts()
    optimizer, schedule, loader = accelerator.prepare(optimizer, schedule, loader)
    train(accelerator, (net, optimizer, schedule, loader), clip=clip)
    check_same(net, optimizer, *plain_loop(clip=clip, scaler=torch.amp.GradScaler("cpu", init_scale=SCALE)))
    accelerator.save_state(tmp_path)
    assert torch.load(tmp_path / "scaler.pt", weights_only=True)["_growth_tracker"] == 5


def test_a_step_that_is_skipped_is_seen():
    accelerator = accelerator_of()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-20)
    net, optimizer, schedule, loader = parts()
    optimizer, schedule, loader = accelerator.prepare(optimizer, schedule, loader)
    seen = []
    for batch in loader:
        optimizer.backward({task: 64 * loss for task, loss in losses_of(net, batch).items()})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen.append(accelerator.optimizer_step_was_skipped)
    skipped = optimizer.statistics["skipped"]
    assert seen == [True] * skipped + [False] * (BATCHES - skipped) and 0 < skipped < BATCHES
    assert schedule.get_last_lr() == pytest.approx([0.05 * 0.9 ** (BATCHES - skipped)])


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_optimizers_of_accelerate_are_refused(kind, monkeypatch):
    pretend(kind, monkeypatch)
    with pytest.raises(ValueError, match=f"does not work with {kind}"):
        accelerator_of()


def pretend(kind, monkeypatch):
    found = accelerate.DistributedType[kind]
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", property(lambda self: found))


def test_a_plain_optimizer_with_several_processes_is_refused(monkeypatch):
    """Nobody would average its gradients."""
    accelerator = accelerator_of()
    pretend("MULTI_CPU", monkeypatch)
    net, optimizer, *_ = parts()
    with pytest.raises(ValueError, match=r"SGD would train a model of its own .* put it into cats\.MultiTask"):
        accelerator.prepare_optimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    prepared = accelerator.prepare_optimizer(optimizer)
    assert accelerator.prepare_optimizer(prepared) is prepared


def test_fsdp_averages_in_each_batch_and_refuses_shared(monkeypatch):
    accelerator = accelerator_of(accumulate=2)
    monkeypatch.setattr(accelerate.Accelerator, "is_fsdp2", property(lambda self: True))
    net, base = parts()[0], torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    net.set_requires_gradient_sync = lambda on: pytest.fail("the gradients of tasks need the mean in each batch")
    with accelerator.accumulate(net):
        assert not accelerator.sync_gradients
    with pytest.raises(ValueError, match="leave out shared="):
        accelerator.prepare_optimizer(cats.CATS(base, TASKS, shared=base.param_groups[0]["params"]))


@pytest.mark.parametrize("passed", [False, True])
def test_one_call_for_each_task_needs_last(passed):
    """Otherwise each call of the last batch counts as the last one, and two_pass does not get the sums of all calls."""
    accelerator = accelerator_of(accumulate=2)
    net, optimizer, _, loader = parts()
    optimizer = cats.CATS(optimizer.base, TASKS, engine="two_pass", alpha_lr=0.3, inner_steps=1)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    for batch in list(loader)[:2]:
        with accelerator.accumulate(net):
            for task in TASKS:
                last = {"last": accelerator.sync_gradients and task == TASKS[-1]} if passed else {}
                optimizer.backward({task: lambda t=task, b=batch: losses_of(net, b)[t]}, **last)
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer.statistics["step"] == 1
    assert (len(set(optimizer.alpha.values())) > 1) == passed


def test_the_optimizer_inside_is_reached():
    optimizer = accelerator_of().prepare(parts()[1])
    assert optimizer.tasks == tuple(TASKS)
    with pytest.raises(AttributeError, match="has no attribute '_private'"):
        optimizer._private  # noqa: B018
    twin = copy.copy(optimizer)
    assert twin.optimizer is optimizer.optimizer
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    assert type(accelerator_of().prepare(plain)) is accelerate.optimizer.AcceleratedOptimizer


def test_a_plain_accelerator_holds_the_optimizer():
    """Its wrapper has no backward(). That of the optimizer inside works, with the scaler and the number of batches."""
    accelerator = accelerate.Accelerator(cpu=True)
    net, optimizer, schedule, loader = accelerator.prepare(*parts())
    for batch in list(loader)[:5]:
        backward(optimizer.optimizer, losses_of(net, batch), scaler=accelerator.scaler)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    check_same(net, optimizer, *plain_loop())


def train_with_others(folder):
    """Called in each process that torchrun starts."""
    # Otherwise it moves a scheduler by as many steps as there are processes.
    accelerator = accelerator_of(accumulate=2, step_scheduler_with_optimizer=False)
    net, *others = parts(rows=2)
    with torch.no_grad():
        net[2].bias += accelerator.process_index  # the first process gives its values to the others
    prepared = net, optimizer, *_ = accelerator.prepare(net, *others)
    assert type(net) is nn.Sequential
    train(accelerator, prepared)
    numbers = {"alpha": optimizer.alpha, "losses": optimizer.statistics["losses"]}
    torch.save({"model": net.state_dict(), **numbers}, f"{folder}/{accelerator.process_index}.pt")


@pytest.mark.slow
@needs_gloo
def test_two_processes_of_torchrun_are_one_with_the_whole_batch(tmp_path):
    run_with_torchrun("tests.integrations.test_accelerate", tmp_path)
    net, optimizer = plain_loop(accumulate=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(*results)
    torch.testing.assert_close(results[0]["model"], dict(net.state_dict()))  # float32: the order of the sums differs
    assert results[0]["alpha"] == pytest.approx(optimizer.alpha, rel=1e-4)
    assert results[0]["losses"] == pytest.approx(optimizer.statistics["losses"], rel=1e-4)


if __name__ == "__main__":
    train_with_others(sys.argv[1])
