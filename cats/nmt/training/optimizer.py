"""The optimizer of a run: AdamW, wrapped in the weighting of the tasks that is configured."""

from __future__ import annotations

import torch
from torch import nn

import cats
from cats.nmt.config import schema
from cats.nmt.errors import UserError


def build_optimizer(
    method: schema.Method, settings: schema.Train, model: nn.Module, tasks: list[str]
) -> cats.MultiTask:
    """AdamW, wrapped in the weighting of the method.

    With `method.weights = "tokens"` the losses themselves carry the weights (see ``TaskLosses.normalizers``), so the
    weights of the optimizer are all 1.

    Raises:
        UserError: `method.weights` has another number of weights than there are tasks.
    """
    base = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if method.name == "cats":
        return cats.CATS(
            base,
            tasks,
            inner_steps=method.inner_steps,
            alpha_lr=method.alpha_lr,
            multiplier_lr=method.multiplier_lr,
            epsilon=method.epsilon,
            simplex="softmax" if method.simplex == "softmax" else "lagrangian",
            loss_term=method.loss_term,
            cross_batch=method.cross_batch,
        )
    if isinstance(method.weights, str):
        weights = [1.0 if method.weights == "tokens" else 1.0 / len(tasks)] * len(tasks)
    else:
        weights = list(method.weights)
    if len(weights) != len(tasks):
        raise UserError(
            f"method.weights has {len(weights)} numbers, the corpus {len(tasks)} tasks ({', '.join(tasks)})"
        )
    return cats.MultiTask(base, tasks, cats.weighting.Static(weights))
