"""The base class of the architectures, and the batches that they get."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

TASKS = 8
WIDTH = 5
LENGTH = 3

# The tasks of the examples of three batches of different sizes. They are mixed, uneven, and one is absent from each.
BATCHES = (torch.tensor([1, 0, 3, 1, 1, 0, 1]), torch.tensor([3, 0, 2, 3, 0, 3]), torch.tensor([2, 1, 1, 2, 3]))
LAST = 5  # the number of examples of the last of them


def squares(output: Tensor) -> Tensor:
    """The squared error (B,) of each row of an output (B, ...); the targets differ between the columns."""
    output = output.flatten(1)
    return (output - torch.linspace(-1, 1, output.shape[1], dtype=output.dtype)).square().mean(1)


class Net(nn.Module):
    """A small model with its own batches and losses. All numbers are drawn from torch's global generator."""

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        """Random inputs for the examples with these tasks (B,)."""
        return (torch.randn(len(ids), WIDTH),)

    def losses(self, ids: Tensor, *inputs: Any) -> Tensor:
        """The loss of every example, (B,) or (B, T), or of every token of packed examples."""
        return squares(self(*inputs))

    def loss_ids(self, ids: Tensor, *inputs: Any) -> Tensor:
        """The tasks of the losses, if these are not one for each example."""
        return ids

    def private_parameters(self) -> list[Tensor]:
        """The parameters that do not enter the dots."""
        return []


class Tokens(Net):
    """A model whose inputs are LENGTH token ids for each example, from a vocabulary of 11."""

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return (torch.randint(0, 11, (len(ids), LENGTH)),)


class Sequences(Net):
    """A model whose inputs are LENGTH vectors for each example."""

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return (torch.randn(len(ids), LENGTH, WIDTH),)


class Images(Net):
    """A model whose inputs are images with 4 channels and 5 x 6 pixels."""

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return (torch.randn(len(ids), 4, 5, 6),)


class Stack(Net):
    """Linear layers with tanh between them."""

    def __init__(self, *widths: int, bias: bool = True) -> None:
        super().__init__()
        sizes = (WIDTH, *widths)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x.tanh())
        return x


class Wrapped(Net):
    """One module between two linear layers, for vectors."""

    def __init__(self, module: nn.Module, width: int = WIDTH, out: int = WIDTH) -> None:
        super().__init__()
        self.before, self.module, self.after = nn.Linear(WIDTH, width), module, nn.Linear(out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.module(self.before(x).tanh()))


class WrappedSequence(Wrapped, Sequences):
    """One module between two linear layers, for sequences."""


class WrappedImage(Images):
    """One module between two convolutions."""

    def __init__(self, module: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.before, self.module, self.after = nn.Conv2d(4, 4, 2), module, nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.module(self.before(x).tanh()).tanh())
