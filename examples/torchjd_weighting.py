"""A rule of TorchJD in place of CATS: any weighting that follows from the Gram matrix of the gradients.

Two tasks want different outputs of one network, and the loss of the second is ten times larger. Where the sum of the
losses decreases, the first loss may well increase. UPGrad (Quinton and Rey, 2024, arXiv 2406.16232) chooses weights
with which no task gets worse, to first order. `cats.MultiTask` takes rules of TorchJD by name or as objects. It
computes the Gram matrix and the weighted sum with its own operators. The training loop stays as it is. This example
needs `pip install ".[torchjd]"`.

    python examples/torchjd_weighting.py

Prints:

    steps along which a task gets worse: sum of the losses 89 of 100, UPGrad 0 of 100
    small loss at the end: sum of the losses 0.79, UPGrad 0.56
    large loss at the end: sum of the losses 0.46, UPGrad 1.19
"""

import torch
from torch import nn

import cats

TASKS = ["small loss", "large loss"]


def the_sum(gram):
    """A function from the (K, K) Gram matrix to K weights is a weighting, too. This one gives the sum of the losses."""
    return torch.ones(len(gram), dtype=gram.dtype)


def train(weighting, steps=100):
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    wanted = torch.tanh(x @ torch.randn(8, 2))  # (examples, tasks)

    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.02), TASKS, weighting)
    worse = 0
    for _ in range(steps):
        errors = (model(x) - wanted).square().mean(0)
        optimizer.zero_grad()
        optimizer.backward({"small loss": errors[0], "large loss": 10 * errors[1]})
        optimizer.step()
        # <g_n, ḡ> of each task's gradient and the combined one. Below 0: a small step raises the loss of the task.
        worse += any(dot < 0 for dot in optimizer.statistics["dots"].values())
    return worse, optimizer.statistics["losses"]


def main():
    (worse, losses), (worse_upgrad, losses_upgrad) = train(the_sum), train(cats.weighting.torchjd("UPGrad"))
    print(f"steps along which a task gets worse: sum of the losses {worse} of 100, UPGrad {worse_upgrad} of 100")
    for task in TASKS:
        print(f"{task} at the end: sum of the losses {losses[task]:.2f}, UPGrad {losses_upgrad[task]:.2f}")


if __name__ == "__main__":
    main()
