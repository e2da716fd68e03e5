"""Label-smoothed cross entropy per token, and likelihoods of whole lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cats.nmt.data.batch import collate
from cats.nmt.model.transformer import Transformer


class _SmoothedLoss(torch.autograd.Function):
    """The two losses of ``token_losses``, keeping one (M, V) matrix and passing over it as seldom as can be.

    The vocabulary makes this matrix the largest tensor of a small model, and passes over it a good part of its step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, wrong: float) -> tuple[Tensor, Tensor]:
        """``wrong``: the probability that smoothing gives each of the V - 1 wrong tokens."""
        log_p = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(log_p, targets)
        ctx.wrong = wrong
        nll = -log_p.gather(-1, targets[:, None]).squeeze(-1)
        smoothed = (1 - wrong * logits.shape[-1]) * nll - wrong * log_p.sum(-1) if wrong else nll.clone()
        ctx.mark_non_differentiable(nll)
        return smoothed, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        log_p, targets = ctx.saved_tensors
        right = 1 - ctx.wrong * log_p.shape[-1]  # what the right token gets above every other one
        result = log_p.exp()
        if ctx.wrong:
            result -= ctx.wrong
        result.scatter_add_(-1, targets[:, None], result.new_full((len(targets), 1), -right))
        return result.mul_(grad[:, None]), None, None


def token_losses(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """(smoothed, nll), each (M,), of logits (M, V) and targets (M,) int64, in nats.

    Label smoothing as in fairseq: the mass ``smoothing`` is spread over the V - 1 wrong tokens (torch's
    ``cross_entropy(label_smoothing=)`` spreads it over all V). nll is the plain negative log likelihood, to report;
    no gradient flows through it.
    """
    return _SmoothedLoss.apply(logits, targets, smoothing / (logits.shape[-1] - 1) if smoothing else 0.0)


@torch.no_grad()
def line_nll(
    model: Transformer, sources: list[list[int]], targets: list[list[int]], *, start: int, batch_tokens: int
) -> np.ndarray:
    """(lines, 2) float64: summed negative log likelihood in nats, without smoothing, and target tokens with eos.

    Args:
        model: is run in evaluation mode, and gets back the mode it had.
        sources, targets: encoded lines of one task, as training has them.
        start: what the decoder begins with.
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
        starts = [start] * len(rows)
        batch = collate([sources[i] for i in rows], [targets[i] for i in rows], starts, model.pad_id, device)
        hidden = model.hidden(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
        nll = token_losses(model.project(hidden).float(), batch.target_out.flatten()[batch.target_cells], 0.0)[
            1
        ].double()
        lengths = [len(targets[i]) for i in rows]
        result[rows, 0] = [float(part.sum()) for part in nll.split(lengths)]
        result[rows, 1] = lengths
    model.train(was_training)
    return result
