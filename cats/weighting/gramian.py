"""Weights from any callable that maps a Gram matrix to weights, such as a Weighting object of TorchJD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .protocol import Weighting


class Gramian(Weighting):
    """In every step, the weights are ``rule(gram)``.

    Args:
        rule: maps the Gram matrix of the K tasks present, (K, K) float64 on the CPU, to (K,) weights. If it is an
            ``nn.Module``, as TorchJD's are, its buffers and parameters are saved and restored with the optimizer.

    Raises:
        TypeError: ``rule`` is not callable.
    """

    needs_gram = True

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        if not callable(rule):
            raise TypeError(
                f"a weighting is a cats.weighting.Weighting or a callable that takes a Gram matrix, got {rule!r}"
            )
        self.rule = rule

    def weights_from_gram(self, gram: Tensor, losses: Tensor) -> Tensor:
        with torch.no_grad():
            return self.rule(gram)

    def state_dict(self) -> dict[str, Any]:
        if not isinstance(self.rule, nn.Module):
            return {}
        # rule.state_dict() leaves out buffers that are still None, and then refuses to load them into another rule.
        return {
            name: {key: None if value is None else value.detach().clone() for key, value in module._buffers.items()}
            | {key: value.detach().clone() for key, value in module._parameters.items() if value is not None}
            for name, module in self.rule.named_modules()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        if {m: list(values) for m, values in own.items()} != {m: list(values) for m, values in state.items()}:
            raise ValueError(f"the state is not one of the rule {type(self.rule).__name__}: it has {list(state)}")
        if not isinstance(self.rule, nn.Module):
            return
        with torch.no_grad():
            for name, module in self.rule.named_modules():
                for key, value in state[name].items():
                    if key in module._buffers:
                        module._buffers[key] = None if value is None else value.clone()
                    else:
                        parameter = module.get_parameter(key)
                        if parameter.shape != value.shape:  # copy_ would broadcast
                            raise ValueError(f"{key!r} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
                        parameter.copy_(value)
