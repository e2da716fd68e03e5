"""A model that is sharded over the processes by `fully_shard` (FSDP2).

Each process holds a part of every parameter, of its gradient and of the optimizer's state. Nothing changes for CATS:
make the base optimizer after `fully_shard`, as always, and pass a loss per task. All processes must pass the same tasks
in the same order, because their forward and backward passes wait for each other.

    torchrun --nproc-per-node 2 examples/fsdp2.py

Prints:

    2 processes, each with 2,433 of 4,866 parameters
    loss of az 0.10, be 0.09, cs 1.01
    weights: az 0.37, be 0.37, cs 0.26
"""

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import cats

TASKS = ["az", "be", "cs"]
NOISE = {"az": 0.1, "be": 0.1, "cs": 1.0}
DEVICE = "cpu"  # "cuda" with a GPU for each process


def main(steps=50):
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    torch.manual_seed(0)  # all processes begin with the same parameters
    centres = {task: torch.randn(8) for task in TASKS}  # each task has other inputs
    answer = torch.randn(8, 2) / 8**0.5

    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).to(DEVICE)
    total = sum(p.numel() for p in model.parameters())
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=1e-2), TASKS)

    torch.manual_seed(dist.get_rank())  # from here on, each process draws its own rows
    for _ in range(steps):
        losses = {}
        for task in TASKS:
            x = centres[task] + torch.randn(32, 8)
            y = x @ answer + NOISE[task] * torch.randn(32, 2)
            losses[task] = F.mse_loss(model(x.to(DEVICE)), y.to(DEVICE))
        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()

    if dist.get_rank() == 0:
        own = sum(p.to_local().numel() for p in model.parameters())
        print(f"{dist.get_world_size()} processes, each with {own:,} of {total:,} parameters")
        losses = optimizer.statistics["losses"]  # means over the processes
        print("loss of " + ", ".join(f"{task} {loss:.2f}" for task, loss in losses.items()))
        print("weights: " + ", ".join(f"{task} {weight:.2f}" for task, weight in optimizer.alpha.items()))


if __name__ == "__main__":
    dist.init_process_group("gloo" if DEVICE == "cpu" else "nccl")
    main()
    dist.barrier()  # as in torchrun_ddp.py
    dist.destroy_process_group()
