"""A physics-informed network: the equation and its boundary conditions are the tasks.

The network u(x) shall solve u'' = −π² sin πx on −1 < x < 1 with u = 0 at both ends. The solution is sin πx. One loss
is the residual of the equation at random points, another one the error at the ends. Any line a x + b can be added to u
without a change of the residual, so the solution needs both. The residual is much larger, and its gradient dominates
the sum. CATS gives such a task less weight. How much this helps varies: with seeds 0 to 3 of `torch.manual_seed` the
error of the sum is 0.0086, 0.0026, 0.0028 and 0.0032, that of CATS 0.0027, 0.0012, 0.0037 and 0.0016. It does not help
in every such problem: bench/README.md has one, the heat equation, in which it makes no difference beyond noise.

The losses contain derivatives of the network, made with `create_graph=True`. `backward()` differentiates them once
more, as `loss.backward()` does.

    python examples/pinn.py

Prints:

    relative error of the sum of the losses 0.009, of CATS 0.003
    weights: equation 0.14, ends 0.86
"""

import math

import torch
from torch import nn

import cats

TASKS = ["equation", "ends"]


def residual(u, x):
    x.requires_grad_()
    (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return curvature + math.pi**2 * torch.sin(math.pi * x)


def train(weighting, steps=300):
    torch.manual_seed(0)
    u = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = cats.MultiTask(torch.optim.AdamW(u.parameters(), lr=5e-3), TASKS, weighting)
    ends = torch.tensor([[-1.0], [1.0]])
    for _ in range(steps):
        inside = 2 * torch.rand(64, 1) - 1
        optimizer.zero_grad()
        optimizer.backward({"equation": residual(u, inside).square().mean(), "ends": u(ends).square().mean()})
        optimizer.step()

    x = torch.linspace(-1, 1, 201)[:, None]
    solution = torch.sin(math.pi * x)
    with torch.no_grad():
        return ((u(x) - solution).norm() / solution.norm()).item(), optimizer.alpha


def main():
    plain, _ = train(cats.weighting.Static([1, 1]))  # the sum of the losses
    ours, alpha = train(cats.weighting.CATS())  # the same as cats.CATS(base, TASKS)
    print(f"relative error of the sum of the losses {plain:.3f}, of CATS {ours:.3f}")
    print("weights: " + ", ".join(f"{task} {weight:.2f}" for task, weight in alpha.items()))


if __name__ == "__main__":
    main()
