"""Layers of torch.nn: norms, convolutions, embeddings, and weights that are computed by parametrizations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from cats.nmt.model.norms import ScaleNorm

from .net import LENGTH, WIDTH, Images, Net, Sequences, Tokens, Wrapped, WrappedImage, WrappedSequence


class TwoInputs(Net):
    """nn.Bilinear."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.both = nn.Linear(WIDTH, 4), nn.Bilinear(4, WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.left(x).tanh(), x)


class NormOfInputs(Sequences):
    """A norm as the first layer, and once more as the last."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.norm(x)).tanh())


class Evaluated(WrappedImage):
    """Batch norm with fixed statistics: the examples do not interact."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(4))
        self.module.running_mean.normal_()
        self.eval()


class Embedded(Tokens):
    """An embedding, its mean over the positions, and a layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(11, WIDTH, **options), nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embedding(tokens).tanh().mean(1))


class Bags(Tokens):
    """nn.EmbeddingBag. ``offsets``: bags of uneven sizes in one row of tokens."""

    def __init__(self, mode: str, offsets: bool = False) -> None:
        super().__init__()
        self.bag, self.out, self.offsets = nn.EmbeddingBag(11, WIDTH, mode=mode), nn.Linear(WIDTH, 2), offsets

    def forward(self, tokens: Tensor) -> Tensor:
        if self.offsets:
            starts = torch.arange(len(tokens)) * LENGTH
            starts[1:] += 1
            return self.out(self.bag(tokens.flatten(), starts))
        return self.out(self.bag(tokens))


class Convolution1d(Sequences):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Conv1d(WIDTH, 6, 3, padding=1), nn.Conv1d(6, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.wide(x.mT).relu())


class Convolutions(Images):
    """Some convolutions of images in a row, then the mean over the pixels and a linear layer."""

    def __init__(self, *layers: nn.Module, channels: int) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList(layers), nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return self.out(x.mean((2, 3)))


class ChannelsLast(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(memory_format=torch.channels_last))


class Patches(Images):
    """A convolution written as unfold and a linear layer, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(4 * 4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2)  # (B, 16, patches)
        return self.out(self.project(patches.mT).tanh().mean(1))


class Volumes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 2)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return (torch.randn(len(ids), 2, 3, 3, 3),)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()


class NewStateInEveryPass(Wrapped):
    """Spectral norm in training: every forward pass changes the estimate that the next one uses."""

    def __init__(self) -> None:
        super().__init__(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)))


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


LAYERS = {
    "bilinear": TwoInputs,
    "layer norm": lambda: Wrapped(nn.LayerNorm(WIDTH)),
    "layer norm without bias": lambda: WrappedSequence(nn.LayerNorm(WIDTH, bias=False)),
    "layer norm without parameters": lambda: Wrapped(nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "layer norm twice": lambda: NormOfInputs(nn.LayerNorm(WIDTH)),
    "layer norm over two dimensions": lambda: WrappedSequence(nn.LayerNorm((LENGTH, WIDTH))),
    "RMS norm": lambda: Wrapped(nn.RMSNorm(WIDTH)),
    "RMS norm twice": lambda: NormOfInputs(nn.RMSNorm(WIDTH, eps=1e-6)),
    "scale norm": lambda: WrappedSequence(ScaleNorm(WIDTH)),
    "scale norm twice": lambda: NormOfInputs(ScaleNorm(WIDTH)),
    "group norm": lambda: WrappedImage(nn.GroupNorm(2, 4)),
    "instance norm": lambda: WrappedImage(nn.InstanceNorm2d(4, affine=True)),
    "batch norm in evaluation": Evaluated,
    "weight norm": lambda: Wrapped(parametrizations.weight_norm(linear())),
    "weight norm of a convolution": lambda: WrappedImage(parametrizations.weight_norm(nn.Conv2d(4, 4, 2))),
    "spectral norm": lambda: Wrapped(parametrizations.spectral_norm(linear())).eval(),
    "spectral norm in training": NewStateInEveryPass,
    "orthogonal": lambda: Wrapped(parametrizations.orthogonal(linear())),
    "embedding": Embedded,
    "embedding, padding": lambda: Embedded(padding_idx=2),
    "embedding, max_norm": lambda: Embedded(max_norm=0.8),
    "embedding, by frequency": lambda: Embedded(scale_grad_by_freq=True),
    "embedding, sparse": lambda: Embedded(sparse=True),
    "bags, sum": lambda: Bags("sum"),
    "bags, mean": lambda: Bags("mean"),
    "bags, max": lambda: Bags("max"),
    "bags, offsets": lambda: Bags("mean", offsets=True),
    "conv1d": Convolution1d,
    "conv2d": lambda: Convolutions(nn.Conv2d(4, 3, 2), nn.Conv2d(3, 5, (2, 3), stride=2), channels=5),
    "conv2d, dilated": lambda: Convolutions(nn.Conv2d(4, 3, 2, dilation=2, padding=1), channels=3),
    "conv2d, grouped": lambda: Convolutions(nn.Conv2d(4, 6, 3, groups=2), channels=6),
    "conv2d, depthwise": lambda: Convolutions(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1), channels=5),
    "conv2d, transposed": lambda: Convolutions(nn.ConvTranspose2d(4, 3, 2, stride=2), channels=3),
    "conv2d, circular padding": lambda: Convolutions(
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), channels=3
    ),
    "conv2d, channels last": lambda: ChannelsLast(nn.Conv2d(4, 3, 2), channels=3),
    "conv3d": Volumes,
    "patches": Patches,
}
