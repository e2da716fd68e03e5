"""Label-smoothed cross entropy per token, and the negative log likelihood (nll) of whole lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cats.nmt.data.batch import collate
from cats.nmt.model.ensemble import Ensemble
from cats.nmt.model.transformer import Transformer


class _SmoothedLoss(torch.autograd.Function):
    """The two losses of ``token_losses``.

    The logits (M, V) are the largest tensor of a small model, and reading them takes much of its time. So this keeps
    only one tensor of that size for the backward pass, and reads it as few times as possible.
    """

    uses_only_its_inputs = True  # tells cats.CATS that no parameter is used inside

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, wrong: float) -> tuple[Tensor, Tensor]:
        """wrong: the target probability that smoothing gives to each of the V - 1 wrong tokens."""
        log_p = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(log_p, targets)
        ctx.save_for_forward(log_p, targets)
        ctx.wrong = wrong
        nll = -log_p.gather(-1, targets[:, None]).squeeze(-1)
        smoothed = (1 - wrong * logits.shape[-1]) * nll - wrong * log_p.sum(-1) if wrong else nll.clone()
        ctx.mark_non_differentiable(nll)
        return smoothed, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        return _SmoothedLoss._derivative(ctx).mul_(grad[:, None]), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        return torch.linalg.vecdot(_SmoothedLoss._derivative(ctx), tangent), None

    @staticmethod
    def _derivative(ctx: Any) -> Tensor:
        """Row i is the derivative of the i-th smoothed loss by its logits: the softmax minus the target probability."""
        log_p, targets = ctx.saved_tensors
        right = 1 - ctx.wrong * log_p.shape[-1]  # target probability of the right token minus that of a wrong one
        result = log_p.exp()
        if ctx.wrong:
            result -= ctx.wrong
        result.scatter_add_(-1, targets[:, None], result.new_full((len(targets), 1), -right))
        return result


def token_losses(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The label-smoothed loss and the negative log likelihood of every token, in nats.

    Label smoothing is fairseq's: the probability `smoothing` is spread over the V - 1 wrong tokens. (torch's
    ``cross_entropy(label_smoothing=)`` spreads it over all V tokens.)

    Args:
        logits: (M, V) floating point.
        targets: (M,) int64.

    Returns:
        (smoothed, nll), each (M,). No gradient flows through nll: it is for reports.
    """
    return _SmoothedLoss.apply(logits, targets, smoothing / (logits.shape[-1] - 1) if smoothing else 0.0)


def smoothed_losses(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The label-smoothed losses of ``token_losses``, (M,). They can be differentiated twice, but need more memory."""
    log_p = torch.log_softmax(logits, dim=-1)
    nll = -log_p.gather(-1, targets[:, None]).squeeze(-1)
    wrong = smoothing / (logits.shape[-1] - 1) if smoothing else 0.0
    return (1 - wrong * logits.shape[-1]) * nll - wrong * log_p.sum(-1)


def line_batches(sources: list[list[int]], targets: list[list[int]], batch_tokens: int) -> list[list[int]]:
    """The indices of the lines of each forward pass of ``line_nll``: lines of similar length, the longest first."""
    order = sorted(range(len(targets)), key=lambda i: (len(targets[i]), len(sources[i])), reverse=True)
    batches = []
    while order:
        size = max(1, batch_tokens // len(targets[order[0]]))
        batches.append(order[:size])
        order = order[size:]
    return batches


@torch.no_grad()
def line_nll(
    model: Transformer | Ensemble, sources: list[list[int]], targets: list[list[int]], *, start: int, batch_tokens: int
) -> np.ndarray:
    """The negative log likelihood of every line, in nats, without label smoothing.

    Args:
        model: it is run in evaluation mode; then its mode is restored.
        sources, targets: encoded lines of one task, with tags and eos.
        start: the first input of the decoder.
        batch_tokens: target tokens, padding included, in one forward pass.

    Returns:
        (lines, 2) float64: the nll summed over the target tokens, and the number of target tokens, eos included.
    """
    was_training = model.training
    model.eval()
    result = np.zeros((len(targets), 2))
    device = next(model.parameters()).device
    for rows in line_batches(sources, targets, batch_tokens):
        starts = [start] * len(rows)
        batch = collate([sources[i] for i in rows], [targets[i] for i in rows], starts, model.pad_id, device)
        logits = model.logits(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
        real = batch.target_out.flatten()[batch.target_cells]
        _, nll = token_losses(logits.float(), real, 0.0)
        lengths = [len(targets[i]) for i in rows]
        result[rows, 0] = [float(part.sum()) for part in nll.double().split(lengths)]
        result[rows, 1] = lengths
    model.train(was_training)
    return result
