"""A small training of several tasks in a plain loop, which Accelerate and Lightning must repeat bit for bit."""

from __future__ import annotations

import torch
from torch import nn

import cats
from tests.optim.common import same

TASKS = ["az", "be", "gl"]
BATCHES = 10


class Data(torch.utils.data.Dataset):
    """Rows with 4 numbers, a target for each task, and the task that counts where rows have a task each."""

    def __len__(self):
        return 4 * BATCHES

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        return torch.randn(4, generator=draw), torch.randn(3, generator=draw), i * 5 % 7 % 3


def loader(data=None, rows=4):
    return torch.utils.data.DataLoader(data or Data(), batch_size=rows)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def optimizer_of(model):
    return cats.CATS(torch.optim.AdamW(model.parameters(), lr=0.05), TASKS, inner_steps=2, alpha_lr=0.3)


def schedule_of(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def losses_of(net, batch, form="tasks"):
    """form: {task: loss} for "tasks", or for "entries" a pair: the loss of each row, and its task."""
    x, y, tasks = batch
    errors = (net(x).float() - y).square()
    if form == "entries":
        return errors.gather(1, tasks[:, None])[:, 0], tasks
    return dict(zip(TASKS, errors.mean(0), strict=True))


def backward(optimizer, losses, **more):
    """``optimizer.backward()`` of what `losses_of` returns."""
    if isinstance(losses, tuple):
        losses, more["tasks"] = losses
    optimizer.backward(losses, **more)


def plain_loop(form="tasks", accumulate=1, clip=0.0, autocast=None, scaler=None, steps=5, epochs=2, batches=None):
    """The network and the optimizer after some steps.

    Args:
        accumulate: batches of a step. clip: the largest norm of the gradient. autocast: a dtype.
    """
    net = network()
    optimizer = optimizer_of(net)
    schedule = schedule_of(optimizer)
    batches = list(loader()) if batches is None else batches
    for _ in range(epochs):
        for place in range(0, len(batches), accumulate):
            some = batches[place : place + accumulate]
            for k, batch in enumerate(some):
                with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                    losses = losses_of(net, batch, form)
                if accumulate > 1 and form == "entries":
                    losses = losses[0] / accumulate, losses[1]
                elif accumulate > 1:
                    losses = {task: loss / accumulate for task, loss in losses.items()}
                backward(optimizer, losses, last=k == len(some) - 1, scaler=scaler)
            if clip:
                if scaler:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if optimizer.statistics["step"] == steps:
                return net, optimizer
    raise AssertionError("the data have too few batches")


def check_same(net, optimizer, plain_net, plain_optimizer):
    assert all(map(torch.equal, net.parameters(), plain_net.parameters()))
    assert same(optimizer.state_dict(), plain_optimizer.state_dict())
