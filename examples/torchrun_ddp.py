"""Several processes with DistributedDataParallel: one batch of all tasks, and the task of each row.

Each process has a part of every batch, and all of them take the same step. In DistributedDataParallel the optimizer
needs a loss for each row, with `tasks=`: the wrapper averages the gradient while the backward pass goes on, and the
optimizer adds K numbers. A task has as many rows in each process here, so that the mean over the processes of its mean
loss is that of the whole batch. A plain model without the wrapper works too, also with a loss per task: the optimizer
then averages the gradient itself.

    torchrun --nproc-per-node 2 examples/torchrun_ddp.py

Prints the same for 1, 2, 4, 8 or 16 processes, but for their number:

    2 processes, engine one_pass
    loss of az 0.02, be 0.03, cs 1.08
    weights: az 0.43, be 0.42, cs 0.15
"""

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import cats

TASKS = ["az", "be", "cs"]
NOISE = torch.tensor([0.1, 0.1, 1.0])
ROWS = 16  # of each task in a batch, over all processes


def main(steps=100):
    torch.manual_seed(0)  # all processes draw the same whole batches, and take their part of them
    centres, answer = torch.randn(len(TASKS), 8), torch.randn(8, 2) / 8**0.5  # each task has other inputs

    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=1e-2), TASKS)
    wrapped = DistributedDataParallel(model)

    for _ in range(steps):
        ids = torch.arange(len(TASKS)).repeat_interleave(ROWS)  # the task of each row
        x = centres[ids] + torch.randn(len(ids), 8)
        y = x @ answer + NOISE[ids, None] * torch.randn(len(ids), 2)

        mine = slice(dist.get_rank(), None, dist.get_world_size())
        losses = (wrapped(x[mine]) - y[mine]).square().mean(1)  # a loss for each row
        optimizer.zero_grad()
        optimizer.backward(losses, tasks=ids[mine])
        optimizer.step()

    if dist.get_rank() == 0:
        statistics = optimizer.statistics  # those of the whole batch
        print(f"{dist.get_world_size()} processes, engine {statistics['engine']}")
        print("loss of " + ", ".join(f"{task} {loss:.2f}" for task, loss in statistics["losses"].items()))
        print("weights: " + ", ".join(f"{task} {weight:.2f}" for task, weight in optimizer.alpha.items()))


if __name__ == "__main__":
    dist.init_process_group("gloo")  # "nccl" with a GPU for each process
    main()
    # A thread of gloo that frees a tensor waits for Python. If Python waits for that thread then, the process hangs. So
    # main() has let go of the wrapper, which owns the group too, and barrier() gives the thread time.
    dist.barrier()
    dist.destroy_process_group()
