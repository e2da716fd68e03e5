"""Random architectures: blocks for sequences that are chosen, nested, repeated and shared by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cats.nmt.model.norms import ScaleNorm

from .net import LENGTH, WIDTH, Sequences, squares


class Block(nn.Module):
    """A function of (B, T, WIDTH), of modules, and of parameters that other blocks may hold too."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function, self.names = function, [f"part{i}" for i in range(len(parts))]
        for name, part in zip(self.names, parts, strict=True):
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, name) for name in self.names))


def vector() -> nn.Parameter:
    return nn.Parameter(torch.randn(WIDTH) * 0.5)


def matrix(rows: int = WIDTH, columns: int = WIDTH) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * 0.5)


def attend(x: Tensor, weight: Tensor) -> Tensor:
    query, key, value = (F.linear(x, part) for part in weight.chunk(3))
    return F.scaled_dot_product_attention(query, key, value)


def permuted(x: Tensor, inner: nn.Module) -> Tensor:
    order = torch.arange(len(x)).roll(2)
    return inner(x[order])[order.argsort()]


def assigned(x: Tensor, inner: nn.Module) -> Tensor:
    y = x.clone()
    y[:, 1:] = inner(x)[:, 1:]
    return y


# Blocks with parameters of their own.
LEAVES: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.RMSNorm(WIDTH, eps=1e-6),
    lambda: ScaleNorm(WIDTH),
    lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(4, WIDTH)),
    lambda: Block(lambda x, a, b: x @ a @ b, matrix(WIDTH, 2), matrix(2, WIDTH)),
    lambda: Block(lambda x, a, b: F.linear(x, b @ a), matrix(2, WIDTH), matrix(WIDTH, 2)),
    lambda: Block(lambda x, scale, shift: x * scale + shift, vector(), vector()),
    lambda: Block(lambda x, positions: x + positions, matrix(LENGTH)),
    lambda: Block(lambda x, conv: conv(x.mT).mT, nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    lambda: Block(lambda x, gru: gru(x)[0], nn.GRU(WIDTH, WIDTH, batch_first=True)),
    lambda: Block(lambda x, gate: x * gate(x).sigmoid(), nn.Linear(WIDTH, WIDTH)),
    lambda: Block(attend, matrix(3 * WIDTH)),
    lambda: Block(lambda x, w: torch.einsum("btd,de->bte", x, w), matrix()),
]

# Blocks around another one.
WRAPPERS: list[Callable[[Tensor, nn.Module], Tensor]] = [
    lambda x, inner: x + inner(x),
    lambda x, inner: inner(inner(x).tanh()),
    lambda x, inner: inner(x.transpose(0, 1).contiguous().transpose(0, 1)),
    lambda x, inner: checkpoint(inner, x, use_reentrant=False),
    lambda x, inner: inner(x.detach()) + x,
    lambda x, inner: torch.cat([inner(x[:2]), inner(x[2:])]),
    permuted,
    assigned,
]

# Uses of a matrix that several blocks share.
USES: list[Callable[[Tensor, Tensor], Tensor]] = [
    F.linear,
    lambda x, w: x @ w,
    lambda x, w: F.linear(x, w, w[1]),
    lambda x, w: F.pad(F.linear(x, w[:3]), (0, 2)),
    lambda x, w: x + w[0],
    lambda x, w: F.linear(x, 0.5 * w),
]


class RandomNet(Sequences):
    """Three to six blocks. One net in ten subtracts the mean of the batch, so its examples interact.

    Attributes:
        mixed: whether the examples interact.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        bank, blocks = matrix(), nn.ModuleList()
        for _ in range(choose.randint(3, 6)):
            kind = choose.random()
            if kind < 0.15 and blocks:
                block = choose.choice(list(blocks))  # the same module again
            elif kind < 0.35:
                block = Block(choose.choice(USES), bank)
            else:
                block = choose.choice(LEAVES)()
            while choose.random() < 0.35:
                block = Block(choose.choice(WRAPPERS), block)
            blocks.append(block)
        frozen = choose.choice(list(blocks))
        if choose.random() < 0.2 and any(p.requires_grad for b in blocks if b is not frozen for p in b.parameters()):
            frozen.requires_grad_(False)
        self.blocks, self.out = blocks, nn.Linear(WIDTH, 2)
        self.mixed, self.per_token = choose.random() < 0.1, choose.random() < 0.5

    def losses(self, ids: Tensor, *inputs: Any) -> Tensor:
        x = inputs[0]
        for block in self.blocks:
            x = block(x).tanh()
        x = self.out(x - x.mean(0) if self.mixed else x)
        return squares(x.flatten(0, 1)).view(x.shape[:2]) if self.per_token else squares(x)
