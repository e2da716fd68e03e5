"""Baselines under torch.compile: the loop over K tasks is unrolled, so that the compiler can fuse it into one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.common.measure import Unavailable

from ..cases import ADAMW, Problem
from ..contender import COMPILED, Contender
from ..oracle import Outcome
from .eager import same_moments

UNROLLED_PAIRS = 64  # the most inner products, K (K + 1) / 2, in one compiled function


def unrolled_combine(grads: list[Tensor], weights: Tensor, out: Tensor) -> None:
    total = grads[0] * weights[0]
    for n in range(1, len(grads)):
        total = total + grads[n] * weights[n]
    out.copy_(total)


def unrolled_combine_dots(grads: list[Tensor], weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    wide = [g.to(weights.dtype) for g in grads]
    total = wide[0] * weights[0]
    for n in range(1, len(wide)):
        total = total + wide[n] * weights[n]
    out.copy_(total)
    return torch.stack([(g * total).sum() for g in wide]), torch.stack([(g * g).sum() for g in wide])


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def unrolled_dots(grads: list[Tensor], direction: Tensor) -> Tensor:
    return torch.stack([(_wide(g) * _wide(direction)).sum() for g in grads])


def unrolled_gram(grads: list[Tensor]) -> Tensor:
    """The lower triangle of the Gram matrix, row after row."""
    wide = [_wide(g) for g in grads]
    return torch.stack([(wide[i] * wide[j]).sum() for i in range(len(wide)) for j in range(i + 1)])


def unrolled_graddrop(grads: list[Tensor], out: Tensor) -> None:
    wide = [_wide(g) for g in grads]
    up, down = wide[0].clamp(min=0), wide[0].clamp(max=0)
    for g in wide[1:]:
        up, down = up + g.clamp(min=0), down + g.clamp(max=0)
    out.copy_(torch.where(up > torch.rand_like(up) * (up - down), up, down))


def unrolled_adamw(
    grads: list[Tensor], weights: Tensor, param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor
) -> None:
    total = grads[0] * weights[0]
    for n in range(1, len(grads)):
        total = total + grads[n] * weights[n]
    b1, b2, lr = ADAMW["beta1"], ADAMW["beta2"], ADAMW["lr"]
    average = b1 * exp_avg + (1 - b1) * total
    square = b2 * exp_avg_sq + (1 - b2) * total * total
    root = (square / (1 - b2**step)).sqrt() + ADAMW["eps"]
    param.copy_(param * (1 - lr * ADAMW["weight_decay"]) - lr / (1 - b1**step) * average / root)
    exp_avg.copy_(average)
    exp_avg_sq.copy_(square)


def contender(operator: str, problem: Problem) -> Contender:
    """The K-unrolled form under torch.compile. It is compiled at its first run.

    The function takes one flattened parameter. For a list of parameters it is compiled once, for any length. One
    function of all K N tensors would take minutes to compile, and would be recompiled whenever a different set of
    gradients is None.

    Raises:
        Unavailable: the operator has no such form, or it would be too large.
    """
    lists = len(problem.out) > 1
    options: dict[str, Any] = {"fullgraph": True, "dynamic": lists}
    weights = problem.weights.to(torch.float64 if problem.dtype is torch.float64 else torch.float32)
    rows = [[g.view(-1) for g in column] for column in problem.columns]
    out = [t.view(-1) for t in problem.out]
    name = "unrolled, one function for any length" if lists else "unrolled"
    run: Callable[[], Outcome]
    if operator == "combine":
        combine = torch.compile(unrolled_combine, **options)

        def run() -> Outcome:
            for row, place in zip(rows, out, strict=True):
                combine(row, weights, place)
            return Outcome(combined=problem.out)

    elif operator == "combine_dots":
        combine_dots = torch.compile(unrolled_combine_dots, **options)

        def run() -> Outcome:
            sums = [combine_dots(row, weights, place) for row, place in zip(rows, out, strict=True)]
            dots, sqnorms = (torch.stack(parts).double().sum(0) for parts in zip(*sums, strict=True))
            return Outcome(combined=problem.out, dots=dots, sqnorms=sqnorms)

    elif operator == "dots":
        dots_of = torch.compile(unrolled_dots, **options)
        direction = [d.view(-1) for d in problem.direction]

        def run() -> Outcome:
            parts = [dots_of(row, d) for row, d in zip(rows, direction, strict=True)]
            return Outcome(dots=torch.stack(parts).double().sum(0))

    elif operator == "graddrop":
        graddrop = torch.compile(unrolled_graddrop, **options)

        def run() -> Outcome:
            for row, place in zip(rows, out, strict=True):
                graddrop(row, place)
            return Outcome(signs=problem.out)

    elif operator == "gram":
        if problem.tasks * (problem.tasks + 1) // 2 > UNROLLED_PAIRS:
            raise Unavailable(f"{problem.tasks * (problem.tasks + 1) // 2} inner products are too many to unroll")
        gram_of = torch.compile(unrolled_gram, **options)
        place = torch.tril_indices(problem.tasks, problem.tasks, device=problem.device)

        def run() -> Outcome:
            triangle = torch.stack([gram_of(row) for row in rows]).double().sum(0)
            matrix = triangle.new_zeros(problem.tasks, problem.tasks)
            matrix[place[0], place[1]] = triangle
            return Outcome(gram=matrix + matrix.tril(-1).T)

    elif operator == "combine_adamw_":
        if not same_moments(problem):
            raise Unavailable("AdamW is compiled for float32 and float64 parameters only")
        update = torch.compile(unrolled_adamw, **options)
        step = torch.ones((), dtype=weights.dtype, device=problem.device)
        state = [[t.view(-1) for t in tensors] for tensors in problem.state]

        def run() -> Outcome:
            for row, p, m, v in zip(rows, *state, strict=True):
                update(row, weights, p, m, v, step)
            return Outcome(state=True)

    else:
        raise Unavailable("no compiled form")
    return Contender(name, COMPILED, run)
