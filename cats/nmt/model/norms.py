"""The norms that a Transformer may have."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ScaleNorm(nn.Module):
    """g x / ‖x‖ with a single learnt g, initially √d (Nguyen & Salazar, 2019)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(math.sqrt(d_model)))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-5))


def make_norm(kind: str, d_model: int) -> nn.Module:
    """The norm of this kind: layernorm, layernorm-plain (without gain and bias), rmsnorm (Zhang & Sennrich, 2019) or
    scalenorm.
    """
    if kind == "scalenorm":
        return ScaleNorm(d_model)
    if kind == "rmsnorm":
        return nn.RMSNorm(d_model, eps=1e-6)  # torch's default epsilon depends on the dtype
    return nn.LayerNorm(d_model, elementwise_affine=kind == "layernorm")
