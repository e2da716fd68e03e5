"""What the tests of the optimizer share: small problems and how to take a step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

TASKS = ["az", "be", "gl"]


class Quadratics:
    """L_n(θ) = ½ (θ − c_n)ᵀ A_n (θ − c_n) with 7 numbers in two parameters."""

    def __init__(self, k=3, seed=0, dtype=torch.float64):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(k, 7, 7)) / 2
        self.curvature = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(7)
        self.centre = rng.normal(size=(k, 7))
        self.start = rng.normal(size=7)
        self.dtype = dtype
        self.weight = nn.Parameter(torch.tensor(self.start[:4].reshape(2, 2), dtype=dtype))
        self.bias = nn.Parameter(torch.tensor(self.start[4:], dtype=dtype))

    @property
    def params(self):
        return [self.weight, self.bias]

    @property
    def theta(self):
        return torch.cat([p.detach().flatten() for p in self.params])

    def loss(self, n, shift=0.0):
        d = torch.cat([p.flatten() for p in self.params]) - torch.tensor(self.centre[n] + shift, dtype=self.dtype)
        return d @ torch.tensor(self.curvature[n], dtype=self.dtype) @ d / 2

    def losses(self, form="tensors", shift=0.0):
        if form == "callables":
            return [lambda n=n: self.loss(n, shift) for n in range(len(self.centre))]
        return [self.loss(n, shift) for n in range(len(self.centre))]

    def numpy_loss(self, theta, n, shift=0.0):
        d = theta - self.centre[n] - shift
        return d @ self.curvature[n] @ d / 2, self.curvature[n] @ d


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in TASKS)
        self.double()

    def losses(self, x):
        z = torch.tanh(self.trunk(x))
        return {t: (head(z) - n).square().mean() for n, (t, head) in enumerate(zip(TASKS, self.heads, strict=True))}


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5))

    def loss(self, n):
        x = torch.randn(12, 8, generator=torch.Generator().manual_seed(n)) + n
        return nn.functional.cross_entropy(self.layers(x), torch.arange(12) % 5)


class RunningNorm(nn.Module):
    """A rule with state, like a TorchJD Weighting: w_n = 1 / running mean of ‖g_n‖², plus a term of a whole row."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, gram):
        assert gram.dtype == torch.float64 and gram.device.type == "cpu" and not gram.requires_grad
        assert torch.isfinite(gram).all()  # solvers fail on anything else
        norms = gram.diagonal().clone()
        self.mean = norms if self.mean is None else (self.mean + norms) / 2
        return 1 / self.mean + 0.01 * torch.tanh(gram.sum(1))


BASES = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.05),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.05, fused=False),
    "AdamW fused": lambda params: torch.optim.AdamW(params, lr=0.05, fused=True),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.05),
}


def same(a, b):
    """Whether two values are equal bit for bit. Dicts and lists are compared item by item, nan equals nan."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def take_step(optimizer, losses):
    optimizer.zero_grad()
    optimizer.backward(losses)
    optimizer.step()


def options_of(simplex):
    return {"inner_steps": 3, "simplex": simplex, "loss_term": True, "alpha_lr": 0.3, "multiplier_lr": 0.1}
