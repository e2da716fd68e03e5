"""The optimizer of a run: AdamW, wrapped in the weighting of the tasks that is configured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import nn

import cats
from cats.nmt.config import schema
from cats.nmt.errors import UserError
from cats.nmt.methods.catalogue import find
from cats.nmt.methods.options import build
from cats.nmt.methods.target_projection import trusted_names
from cats.nmt.training.sharding import is_sharded


def build_optimizer(
    method: schema.Method, settings: schema.Train, model: nn.Module, shares: Mapping[str, float], drawn: int = 0
) -> cats.MultiTask:
    """AdamW, wrapped in the weighting of the method.

    With `method.weights = "tokens"` the losses themselves carry the weights (see ``TaskLosses.normalizers``), so the
    weights of the optimizer are all 1.

    Args:
        shares: {task: its expected share of the tokens}.
        drawn: the number of tasks in an update; 0: all.

    Raises:
        UserError: `method.weights` has another number of weights than there are tasks, or an option of the method or
            the engine does not fit it.
    """
    tasks = list(shares)
    # With sharded parameters, fully_shard exchanges the gradients.
    communication = torch.bfloat16 if settings.communication == "bf16" and not is_sharded(settings) else None
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
            alpha_lr=_number(method.alpha_lr),
            multiplier_lr=_number(method.multiplier_lr),
            epsilon=method.epsilon,
            simplex=cast(Literal["proximal", "softmax", "lagrangian"], method.simplex),
            strength=method.strength,
            floor=_number(method.floor),
            reduction="mean",  # so that the learning rate and the clipping mean the same as with the other methods
            loss_term=method.loss_term,
            cross_batch=method.cross_batch,
            direction=cast(Literal["gradient", "preconditioned", "momentum", "update"], method.direction),
            engine=method.engine,
            rows=None if method.rows == 1 else method.rows,
            model=model,
            communication_dtype=communication,
        )
    if not find(method.name).has_plain_weights:
        prior = list(shares.values()) if method.prior == "tokens" else None
        trusted = trusted_names(tasks) if method.name == "target-projection" else {}
        given = {"seed": settings.seed, "shares": prior, "reduction": "mean", "trusted": trusted}
        weighting = build(method.name, method.options, **given)
        if method.name.startswith("torchjd:"):
            few = min(drawn or len(tasks), len(tasks))
            _try_once(method.name, build(method.name, method.options, **given), len(tasks), few)
        tasks = [*tasks, *trusted.values()]
        if weighting.needs_gram and weighting.tolerance is None:  # autocast makes larger rounding errors
            weighting.tolerance = {"bf16": 1e-3, "fp16": 1e-5}.get(settings.precision)
        try:
            return cats.MultiTask(
                base, tasks, weighting, engine=method.engine, model=model, communication_dtype=communication
            )
        except ValueError as error:
            raise UserError(f"method.name = {method.name}: {error}") from error
    if isinstance(method.weights, str):
        weights = [1.0 if method.weights == "tokens" else 1.0 / len(tasks)] * len(tasks)
    else:
        weights = list(method.weights)
    _check_number("method.weights", weights, tasks)
    return cats.MultiTask(base, tasks, cats.weighting.Static(weights), communication_dtype=communication)


def _try_once(name: str, weighting: cats.weighting.Weighting, tasks: int, drawn: int) -> None:
    """Computes weights of orthogonal gradients: only then TorchJD says that an option does not fit the number of tasks.

    Args:
        tasks: the number of all tasks.
        drawn: the number of tasks in an update.

    Raises:
        UserError: it does not.
    """
    try:
        weighting.start(tasks)
        for count in dict.fromkeys((tasks, drawn)):
            gram, losses = torch.eye(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
            weighting.weights_from_grams(gram[None], losses, range(count))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"method.name = {name}: {' '.join(str(error).split())}") from error


def token_weights(method: schema.Method, tasks: Sequence[str]) -> dict[str, float] | None:
    """{task: how much a token of it counts}, if the loss is a mean over all tokens of the batch. None: it is not.

    The optimizer then has nothing to weight.

    Raises:
        UserError: `method.token_weights` has another number of weights than there are tasks.
    """
    if method.weights != "tokens" or not find(method.name).has_plain_weights:
        return None
    weights = method.token_weights or (1.0,) * len(tasks)
    _check_number("method.token_weights", weights, tasks)
    return dict(zip(tasks, weights, strict=True))


def _check_number(name: str, weights: Sequence[float], tasks: Sequence[str]) -> None:
    """Raises an error unless a setting has one weight per task."""
    if len(weights) != len(tasks):
        raise UserError(f"{name} has {len(weights)} numbers, the corpus {len(tasks)} tasks ({', '.join(tasks)})")


def gradient_scales(
    method: schema.Method, weighting: cats.weighting.Weighting, tokens: Mapping[str, float], tasks: Sequence[str]
) -> dict[str, float] | None:
    """What the gradient of each task's mean loss is multiplied by, so that all weightings start on the same footing.

    With `method.prior = "tokens"`, equal weights then give the plain mean over the tokens of the batch: the gradient of
    the methods without weights. With "uniform" they give the mean of the tasks' mean losses. The sum of the weights
    does not matter, so the learning rate means the same with all of them. The values of the losses stay as they are.

    Args:
        tokens: {task: number proportional to its target tokens} of the batch.
        tasks: all tasks of the run.

    Returns:
        {task: factor}. None: 1 for all.
    """
    entry = find(method.name)
    if entry.has_plain_weights or method.name == "cats":  # cats has a prior of its own
        return None
    total, present = sum(tokens.values()), len(tokens)
    by_tokens = entry.relative and method.prior == "tokens"
    wanted = {task: number / total if by_tokens else 1 / present for task, number in tokens.items()}
    if entry.sums:
        return wanted
    if weighting.needs_gram:  # the weights of the tasks of the batch sum to 1, else those of all tasks
        return {task: present * share for task, share in wanted.items()}
    neutral = getattr(weighting, "shares", None)  # those of DRO start at the tasks' shares of the data
    equal = dict(zip(tasks, [1 / len(tasks)] * len(tasks) if neutral is None else neutral.tolist(), strict=True))
    return {task: share / equal[task] if equal[task] else 0.0 for task, share in wanted.items()}


def check_backend(device: torch.device) -> None:
    """Uses the operators once if CATS_BACKEND chooses their backend, so that a wrong choice shows before training.

    Raises:
        UserError: there is no such backend, or it cannot be used here.
    """
    if name := os.environ.get("CATS_BACKEND"):
        try:
            cats.ops.gram([[torch.zeros(1, device=device)]])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the environment variable CATS_BACKEND is {name!r}: {error}") from None


def _number(value: float | str) -> float | None:
    """The value of a setting that may be "auto", which cats.CATS calls None."""
    return None if isinstance(value, str) else value
