"""Vectors in, vectors out: how modules and parameters are reused, shared, frozen, nested and hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .net import LENGTH, TASKS, WIDTH, Net, Sequences, Stack, Tokens, Wrapped, squares


class DeeplyNested(Net):
    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh()), nn.Linear(4, 6))
        self.outer = nn.Sequential(nn.ModuleDict({"a": nn.Sequential(inner, nn.ReLU())})["a"], nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x)


class TwoNames(Net):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).tanh()).tanh())


class Loop(Net):
    """One module several times: in a loop, and beside itself on other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = (self.cell(x) + self.cell(x * x)).tanh()
        return self.out(x)


class Branches(Net):
    """Two branches that meet again, and a sum with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH), nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).tanh()
        return x + self.left(h) * self.right(h).sigmoid()


class TiedParameter(Net):
    """Two modules that hold the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


class TiedEmbedding(Tokens):
    """The embedding matrix is the output layer too. Padding is seen by the loss, so its row matters in both uses."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, WIDTH, padding_idx=padding_idx), nn.Linear(WIDTH, WIDTH)

    def losses(self, ids: Tensor, tokens: Tensor) -> Tensor:
        logits = F.linear(self.mix(self.embedding(tokens)).tanh(), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), tokens.flip(1).flatten(), reduction="none").view(tokens.shape)


class ParametersOfChildren(Net):
    """A parent that uses the parameters of its child without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.out = nn.Linear(WIDTH, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.child.weight).tanh() + self.child.bias)


class ScaleAndShift(Sequences):
    """Parameters of the model itself: a scale, a shift, and scalars as gates."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.gate, self.step = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(1))
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.layer(x * self.scale + self.shift).tanh() + (x - self.step) / (1 + self.gate**2)


class Positions(Sequences):
    """A learnt embedding of the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.out = nn.Parameter(torch.randn(LENGTH, WIDTH)), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x + self.positions).tanh())


class ClassToken(Sequences):
    """A learnt token before every sequence, expanded over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.mix, self.out = nn.Linear(LENGTH + 1, 4), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.out(self.mix(x.mT).tanh().mT[:, 0])


class NoneInput(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return torch.randn(len(ids), WIDTH), None

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.a(x) if y is None else self.b(y)


@dataclass
class Pair:
    left: Tensor
    right: tuple[Tensor, None]


class Split(nn.Module):
    """Takes and returns nested structures: a dict and a dataclass, with None and an empty tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)

    def forward(self, inputs: dict[str, Any]) -> Pair:
        x, (y, _) = inputs["x"], inputs["y"]
        return Pair(self.a(x), (self.b(y), None))


class NestedStructures(Net):
    def __init__(self) -> None:
        super().__init__()
        self.split, self.out = Split(), nn.Linear(3, 2)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return ({"x": torch.randn(len(ids), WIDTH), "y": [torch.randn(len(ids), WIDTH), ()]},)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        pair = self.split(inputs)
        return self.out(pair.left * pair.right[0])


class Frozen(Stack):
    """Some parameters are frozen: layers, or only weights, or only biases."""

    def __init__(self, *frozen: str) -> None:
        super().__init__(4, 6, 2)
        for name in frozen:
            self.get_submodule(name).requires_grad_(False) if name[-1].isdigit() else self.get_parameter(
                name
            ).requires_grad_(False)


class Unused(Stack):
    def __init__(self) -> None:
        super().__init__(4, 2)
        self.never, self.layer = nn.Parameter(torch.randn(3)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return super().forward(x)


class NoGradients(Net):
    """Parameters that are used with and without gradients: a branch under no_grad, and a detached output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.a(self.a(x))
        return self.out(self.a(x) * target + self.b(self.a(x).detach()).tanh())


class Lora(Net):
    """Low-rank adapters beside a frozen layer, or merged into its weight."""

    def __init__(self, merged: bool = False, start: float = 1.0) -> None:
        super().__init__()
        self.base, self.out, self.merged = nn.Linear(WIDTH, 4).requires_grad_(False), nn.Linear(4, 2), merged
        self.a, self.b = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(4, 2) * start)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            h = F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)
        else:
            h = self.base(x) + F.linear(F.linear(x, self.a), self.b)
        return self.out(h.tanh())


class Heads(Net):
    """A head for each task, which only its own examples use. ``private`` heads do not enter the dots."""

    def __init__(self, private: bool = False) -> None:
        super().__init__()
        self.trunk, self.private = nn.Linear(WIDTH, 4), private
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(TASKS))

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        h, losses = self.trunk(x).tanh(), x.new_zeros(len(x))
        for n, head in enumerate(self.heads):
            losses = losses.masked_scatter(ids == n, squares(head(h[ids == n])))
        return losses

    def private_parameters(self) -> list[Tensor]:
        return list(self.heads.parameters()) if self.private else []


class InPlace(Net):
    """ReLU and sums in place, and an assignment to a part of a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(WIDTH, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu_(self.a(x))
        y = self.b(h)
        y += h
        y[:, 1] = y[:, 2].clone() * 3
        return self.out(y.mul_(0.5))


class Dropout(Wrapped):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Dropout(0.4), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2)))


class Checkpointed(Net):
    """A block whose activations are computed again in the backward pass, with dropout inside."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.out, self.use_reentrant = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2), use_reentrant
        self.block = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.block, self.first(x), use_reentrant=self.use_reentrant))


class NestedCheckpoints(Checkpointed):
    """A checkpoint inside another one; the inner block runs twice."""

    def __init__(self) -> None:
        super().__init__(use_reentrant=False)

    def outer(self, x: Tensor) -> Tensor:
        return self.block(self.first(checkpoint(self.block, self.first(x), use_reentrant=False).tanh()))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.outer, x, use_reentrant=False))


class Doubled(torch.autograd.Function):
    """2 x, and 2 δ in the backward pass. It has no forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)


class SavedOnCpu(Stack):
    """Saved activations pass through hooks."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return super().forward(x)


class Hooked(Stack):
    """Hooks of modules that change the output of one layer and the gradient of another."""

    def __init__(self) -> None:
        super().__init__(4, 6, 2)
        self.layers[0].register_forward_hook(lambda module, args, output: output * 2 + 1)
        self.layers[1].register_full_backward_hook(lambda module, before, after: (before[0] * 0.5,))


class Uncertainty(Stack):
    """A learnt variance for each task that weights its losses (Kendall et al., 2018)."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.log_variance = nn.Parameter(torch.randn(TASKS))

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        s = self.log_variance[ids]
        return squares(self(x)) * torch.exp(-s) + s


BASIC = {
    "mlp": lambda: Stack(6, 4, 2),
    "no bias": lambda: Stack(6, 2, bias=False),
    "one layer": lambda: Stack(1),
    "deeply nested": DeeplyNested,
    "module under two names": TwoNames,
    "module in a loop": Loop,
    "branches": Branches,
    "parameter of two modules": TiedParameter,
    "embedding = output": TiedEmbedding,
    "embedding = output, padding": lambda: TiedEmbedding(padding_idx=3),
    "parameters of children": ParametersOfChildren,
    "scale and shift": ScaleAndShift,
    "positions": Positions,
    "class token": ClassToken,
    "None as input": NoneInput,
    "nested structures": NestedStructures,
    "frozen layer": lambda: Frozen("layers.1"),
    "frozen first layers": lambda: Frozen("layers.0", "layers.1"),
    "only biases": lambda: Frozen("layers.0.weight", "layers.1.weight", "layers.2.weight"),
    "only weights": lambda: Frozen("layers.0.bias", "layers.1.bias", "layers.2.bias"),
    "unused parameters": Unused,
    "no_grad and detach": NoGradients,
    "LoRA": Lora,
    "LoRA, zero at first": lambda: Lora(start=0.0),
    "LoRA, merged": lambda: Lora(merged=True),
    "heads": Heads,
    "private heads": lambda: Heads(private=True),
    "in place": InPlace,
    "dropout": Dropout,
    "checkpoint": lambda: Checkpointed(use_reentrant=False),
    "nested checkpoints": NestedCheckpoints,
    "reentrant checkpoint": lambda: Checkpointed(use_reentrant=True),
    "custom function": lambda: Wrapped(Custom()),
    "saved tensors on CPU": SavedOnCpu,
    "hooks of modules": Hooked,
    "uncertainty weights": Uncertainty,
    "PReLU": lambda: Wrapped(nn.PReLU()),
    "PReLU per channel": lambda: Wrapped(nn.PReLU(WIDTH)),
}
