"""An exponential moving average of the parameters (`train.ema`), which is validated and decoded instead of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cats.nmt.training import sharding


class ParameterAverage:
    """θ̄ ← d θ̄ + (1 − d) θ after every update (Polyak & Juditsky, 1992, with exponential weights).

    The t-th update (t = 0, 1, ..) uses d = min(decay, (1 + t) / (10 + t)), as TensorFlow's ExponentialMovingAverage
    does with `num_updates`: otherwise the random parameters of the start would count for about 1 / (1 − decay) updates.

    An update that was skipped, because its gradient was not finite, counts as one that left θ where it was: to know of
    it, the CPU would have to wait for the GPU. With sharded parameters each process averages its own shards.
    ``torch.optim.swa_utils.AveragedModel`` is of no use here: it copies the module, which sharded modules refuse, and
    it waits for the device at every update.

    Args:
        model: its parameters must be on their device, and sharded, already. The average starts as a copy of them.
        decay: 0: there is no average; all methods do nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        # The parameters as the optimizer knows them: a sharded module has others during its forward pass.
        self.parameters = dict(model.named_parameters()) if decay else {}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self) -> None:
        """Moves the average towards the parameters."""
        if self.decay:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            averages, parameters = (
                [_local(tensor.detach()) for tensor in tensors.values()] for tensors in (self.average, self.parameters)
            )
            get_ema_multi_avg_fn(decay)(averages, parameters, self.updates)
            self.updates += 1

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The model has the average in place of its parameters while the block runs. With sharded parameters, all
        processes must enter."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        sharding.drop_gathered(self.model)  # of the forward passes before: they would be used again
        for name, average in self.average.items():
            one, other = _local(self.parameters[name].detach()), _local(average)
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the number of updates and the average by parameter. Empty without an average."""
        return {"updates": self.updates, "parameters": sharding.whole(self.average)} if self.decay else {}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint. If it has no average, the average starts as a copy of the parameters, now.

        Raises:
            KeyError, RuntimeError, TypeError: the state belongs to another model.
        """
        found = state.get("parameters")
        for name, average in self.average.items():
            average.copy_(self.parameters[name] if found is None else sharding.shard_like(found[name], average))
        self.updates = state.get("updates", 0)


def _local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process has. It shares its memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
