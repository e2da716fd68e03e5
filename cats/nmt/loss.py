"""Label-smoothed cross entropy per token, and likelihoods of whole lines."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cats.nmt.model import Transformer, collate


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


@torch.no_grad()
def line_nll(
    model: Transformer, sources: list[list[int]], targets: list[list[int]], *, bos_id: int, batch_tokens: int
) -> np.ndarray:
    """(lines, 2) float64: summed negative log likelihood in nats, without smoothing, and target tokens with eos.

    Args:
        model: is run in evaluation mode, and gets back the mode it had.
        sources, targets: encoded lines, as training has them.
        batch_tokens: target tokens, padding included, that go through the model at a time.
    """
    was_training = model.training
    model.eval()
    result = np.zeros((len(targets), 2))
    device = next(model.parameters()).device
    order = sorted(range(len(targets)), key=lambda i: (len(targets[i]), len(sources[i])), reverse=True)
    while order:
        size = max(1, batch_tokens // len(targets[order[0]]))
        rows, order = order[:size], order[size:]
        batch = collate([sources[i] for i in rows], [targets[i] for i in rows], bos_id, model.pad_id, device)
        real = batch.target_out != model.pad_id
        logits = model.project(model.hidden(batch.source, batch.target_in)).float()
        nll = token_losses(logits, batch.target_out[real], 0.0)[1].double()
        lengths = real.sum(1).tolist()
        result[rows, 0] = [float(part.sum()) for part in nll.split(lengths)]
        result[rows, 1] = lengths
    model.train(was_training)
    return result
