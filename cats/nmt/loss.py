"""Label-smoothed cross entropy, per token."""

from __future__ import annotations

import torch
from torch import Tensor


def token_losses(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """(smoothed, nll), each (M,), of logits (M, V) and targets (M,) int64, in nats.

    Label smoothing as in fairseq: the mass ``smoothing`` is spread over the V - 1 wrong tokens (torch's
    ``cross_entropy(label_smoothing=)`` spreads it over all V). nll is the plain negative log likelihood, to report.
    """
    normaliser = torch.logsumexp(logits, dim=-1)
    nll = normaliser - logits.gather(-1, targets[:, None]).squeeze(-1)
    if smoothing == 0.0:
        return nll, nll
    size = logits.shape[-1]
    share = smoothing / (size - 1)
    everything = size * normaliser - logits.sum(-1)  # the sum of -log p over the vocabulary
    return (1 - smoothing - share) * nll + share * everything, nll
