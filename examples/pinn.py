"""A physics-informed network: the equation and its boundary conditions are the tasks.

The network u(x) shall solve u'' = −π² sin πx on −1 < x < 1 with u = 0 at both ends. The solution is sin πx. One loss
is the residual of the equation at random points, another one the error at the ends. Any line a x + b can be added to u
without a change of the residual, so the solution needs both. The residual is much larger, and its gradient dominates
the sum. CATS gives such a task less weight. How much this helps varies with the seed. It does not help in every such
problem: bench/README.md has one, the heat equation, in which it makes no difference beyond noise.

The losses contain derivatives of the network, made with `create_graph=True`. `backward()` differentiates them once
more, as `loss.backward()` does.

    python examples/pinn.py

Prints:

    seed   relative error: sum of the losses    CATS   weights: equation   ends
       0                              0.0086  0.0027                0.14   0.86
       1                              0.0026  0.0012                0.09   0.91
       2                              0.0028  0.0037                0.15   0.85
       3                              0.0032  0.0016                0.12   0.88
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


def train(weighting, seed, steps=300):
    torch.manual_seed(seed)
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
    print("seed   relative error: sum of the losses    CATS   weights: equation   ends")
    for seed in range(4):
        plain, _ = train(cats.weighting.Static([1, 1]), seed)  # the sum of the losses
        ours, alpha = train(cats.weighting.CATS(), seed)  # the same as cats.CATS(base, TASKS)
        print(f"{seed:4} {plain:35.4f} {ours:7.4f} {alpha['equation']:19.2f} {alpha['ends']:6.2f}")


if __name__ == "__main__":
    main()
