"""What the integrations share: replicas of a model without DistributedDataParallel."""

from __future__ import annotations

from torch import distributed as dist
from torch import nn


def copy_from_first(model: nn.Module) -> None:
    """Gives all processes the parameters and buffers of the first one, as DistributedDataParallel does."""
    for tensor in [*model.parameters(), *model.buffers()]:
        values = tensor.detach().contiguous()  # broadcast() takes nothing else
        dist.broadcast(values, src=0)
        if not tensor.is_contiguous():
            tensor.detach().copy_(values)
