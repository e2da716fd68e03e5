"""Two tasks, one network with two heads: what changes in a training loop.

The network reads 16 numbers, and each head predicts another number. The labels of the second task are noisy. Both
losses share the trunk, so the gradient of the noisy task disturbs what the other task learns. The program trains twice:
with the sum of the two losses, and with CATS, which finds out during training that the noisy task needs less weight.

    python examples/two_heads.py

Prints:

    squared error on fresh data   clean   noisy
    sum of the losses             0.229   2.921
    CATS                          0.156   1.619
    weights of CATS: clean 0.86, noisy 0.14
"""

import torch
from torch import nn

import cats

TASKS = ["clean", "noisy"]
NOISE = torch.tensor([0.1, 2.0])  # of the labels that each task is trained on


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in TASKS})

    def forward(self, x):
        hidden = self.trunk(x)
        return torch.cat([self.heads[task](hidden) for task in TASKS], dim=1)  # (examples, tasks)


def train(with_cats, steps=300):
    torch.manual_seed(0)
    answer = torch.randn(16, 2)  # the linear function that each task should learn
    x = torch.randn(512, 16)
    y = x @ answer + NOISE * torch.randn(512, 2)

    model = TwoHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if with_cats:
        # `shared`: compare the tasks by their gradients in the trunk. Each head belongs to one task anyway.
        optimizer = cats.CATS(optimizer, TASKS, shared=model.trunk.parameters())

    for _ in range(steps):
        losses = dict(zip(TASKS, (model(x) - y).square().mean(0), strict=True))  # {task: scalar tensor}
        optimizer.zero_grad()
        if with_cats:
            optimizer.backward(losses)  # fills p.grad with the weighted gradient
        else:
            sum(losses.values()).backward()
        optimizer.step()

    fresh = torch.randn(1000, 16)
    with torch.no_grad():
        errors = (model(fresh) - fresh @ answer).square().mean(0)
    return errors.tolist(), optimizer


def main():
    plain, _ = train(with_cats=False)
    ours, optimizer = train(with_cats=True)
    print("squared error on fresh data   clean   noisy")
    print("sum of the losses           {:7.3f} {:7.3f}".format(*plain))
    print("CATS                        {:7.3f} {:7.3f}".format(*ours))
    print("weights of CATS: " + ", ".join(f"{task} {weight:.2f}" for task, weight in optimizer.alpha.items()))


if __name__ == "__main__":
    main()
