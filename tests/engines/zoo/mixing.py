"""Examples of different tasks interact: ḡ is defined, but rows belong to no single task."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net import LAST, WIDTH, Net, Stack, Wrapped, WrappedImage, squares
from .rows import Experts


class Mixing(Stack):
    """Three layers; between the last two, a subclass mixes the rows."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.mix(self.layers[1](self.layers[0](x).tanh())).tanh())


class Centred(Mixing):
    def mix(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class AttentionOverTheBatch(Mixing):
    def mix(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.T, -1) @ x


class FourierOverTheBatch(Mixing):
    def mix(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real


class SoftmaxOverTheBatch(Mixing):
    def mix(self, x: Tensor) -> Tensor:
        return torch.softmax(x, 0)


class LargestOfTheBatch(Mixing):
    """Only the row with the largest value gets a gradient from this, and it may have the task of the loss."""

    def mix(self, x: Tensor) -> Tensor:
        return x + x.max(0).values


class Neighbours(Mixing):
    """Each row sees the one before it."""

    def mix(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.roll(1, 0)


class NormOfColumns(Mixing):
    """A norm with parameters for the examples, over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(WIDTH, affine=True)

    def mix(self, x: Tensor) -> Tensor:
        return self.norm(x.T[None])[0].T


class FaintMixing(Mixing):
    """The examples interact by a part in 10⁶ of their values."""

    def mix(self, x: Tensor) -> Tensor:
        return x + 1e-6 * x.sum(0)


class MixedLater(Mixing):
    """The last batch is mixed: by a norm that is in training mode then, or by a loss that is added then."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, affine=False) if norm else None

    def mix(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            return self.norm.train(len(x) == LAST)(x)
        return x

    def losses(self, ids: Tensor, *inputs: Any) -> Tensor:
        losses = super().losses(ids, *inputs)
        return losses + losses.logsumexp(0) if self.norm is None and len(ids) == LAST else losses


class ClosedGate(Mixing):
    """A path on which the examples interact, behind a gate that is closed in all batches but the last."""

    def mix(self, x: Tensor) -> Tensor:
        return x + (len(x) == LAST) * x.roll(1, 0)


class MixedLosses(Stack):
    """The losses themselves are mixed: contrastive, divided by their mean, or a maximum over the batch."""

    def __init__(self, kind: str) -> None:
        super().__init__(4, 3)
        self.kind = kind

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        y = self(x)
        if self.kind == "contrastive":
            y = F.normalize(y)
            return F.cross_entropy(y @ y.roll(1, 1).T, torch.arange(len(y)), reduction="none")
        losses = squares(y)
        return losses / losses.mean() if self.kind == "relative" else losses + losses.logsumexp(0)


class BalancedExperts(Experts):
    """An auxiliary loss over the batch makes the experts' loads equal."""

    def losses(self, ids: Tensor, *inputs: Any) -> Tensor:
        return super().losses(ids, *inputs) + torch.softmax(self.router(inputs[0]), -1).mean(0).square().sum()


class Auxiliary(Net):
    """An auxiliary loss that only one layer's output enters, over all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 4), nn.Linear(4, 2)

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        h = self.a(x)
        return squares(self.b(h.tanh())) + 0.01 * h.square().mean()


MIXING = {
    "batch norm": lambda: Wrapped(nn.BatchNorm1d(WIDTH)),
    "batch norm of images": lambda: WrappedImage(nn.BatchNorm2d(4)),
    "batch norm without parameters": lambda: Wrapped(nn.BatchNorm1d(WIDTH, affine=False)),
    "mean of the batch subtracted": Centred,
    "attention over the batch": AttentionOverTheBatch,
    "Fourier over the batch": FourierOverTheBatch,
    "softmax over the batch": SoftmaxOverTheBatch,
    "maximum over the batch": LargestOfTheBatch,
    "neighbours": Neighbours,
    "norm over the batch": NormOfColumns,
    "faint mixing": FaintMixing,
    "batch norm in training later": lambda: MixedLater(norm=True),
    "shared loss later": lambda: MixedLater(norm=False),
    "contrastive loss": lambda: MixedLosses("contrastive"),
    "losses divided by their mean": lambda: MixedLosses("relative"),
    "largest loss": lambda: MixedLosses("largest"),
    "balanced experts": BalancedExperts,
    "auxiliary loss": Auxiliary,
}
