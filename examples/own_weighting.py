"""A weighting of your own: GradNorm in 30 lines.

A weighting is a class that turns a few numbers per task into one weight per task. It never sees a tensor of the model's
size, and it needs no code for several processes, accumulation, mixed precision or absent tasks: the optimizer has it.
GradNorm (Chen et al., ICML 2018, arXiv 1711.02257) balances the norms of the weighted gradients, and gives tasks that
learn slowly larger ones. `cats.weighting.GradNorm` is the complete form, with Adam where this one takes signs.

    python examples/own_weighting.py

Prints:

    equal weights: metres 1.00, centimetres 1.00
        left of the first loss: metres 0.202, centimetres 0.024
    GradNorm: metres 1.98, centimetres 0.02
        left of the first loss: metres 0.077, centimetres 0.107
"""

import torch
from torch import nn

import cats

TASKS = ["metres", "centimetres"]  # the same kind of task, in other units


class GradNorm(cats.weighting.Weighting):
    needs_sqnorms = True  # update() gets the squared norms of the tasks' gradients
    # update() is called in every step. With `period = 5` it would be every fifth, and the other steps would be cheaper.

    def __init__(self, power=1.5, lr=0.05):
        self.power, self.lr = power, lr

    def start(self, tasks):
        self.logs = torch.zeros(tasks, dtype=torch.float64)  # log w_n
        self.first = torch.full((tasks,), torch.nan, dtype=torch.float64)  # L_n(0)

    def weights(self):
        return len(self.logs) * self.logs.softmax(0)  # their sum is the number of tasks

    def update(self, losses, dots, sqnorms, present):
        first = self.first[present]
        first = torch.where(first.isnan(), losses, first)
        rates = losses / first  # what each task has left of its first loss: high if it learns slowly
        norms = self.weights()[present] * sqnorms.sqrt()  # of the weighted gradients
        target = norms.mean() * (rates / rates.mean()) ** self.power
        self.first, self.logs = self.first.clone(), self.logs.clone()  # state_dict() may hold the old ones
        self.first[present] = first
        self.logs[present] -= self.lr * torch.sign(norms - target)  # too large: down, too small: up

    def state_dict(self):
        return {"logs": self.logs.clone(), "first": self.first.clone()}

    def load_state_dict(self, state):
        self.logs, self.first = state["logs"].clone(), state["first"].clone()


def train(weighting, steps=100):
    """Returns what each task has left of its first loss."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = torch.tanh(x @ torch.randn(8, 2)) * torch.tensor([1.0, 10.0])
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = cats.MultiTask(torch.optim.Adam(model.parameters(), lr=1e-2), TASKS, weighting)
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.backward((model(x) - y).square().mean(0).unbind())  # a sequence: the losses in the order of TASKS
        optimizer.step()
        losses = optimizer.statistics["losses"]
        if step == 0:
            first = losses
    return {task: losses[task] / first[task] for task in TASKS}, optimizer.alpha


def main():
    for name, weighting in (("equal weights", cats.weighting.Static([1, 1])), ("GradNorm", GradNorm())):
        left, weights = train(weighting)
        print(f"{name}: " + ", ".join(f"{task} {weights[task]:.2f}" for task in TASKS))
        print("    left of the first loss: " + ", ".join(f"{task} {left[task]:.3f}" for task in TASKS))


if __name__ == "__main__":
    main()
