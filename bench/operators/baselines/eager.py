"""Baselines in eager torch.

They read the problem's gradients and write its reused outputs, as the backends do. A form that needs the gradients as
one matrix is measured twice. "stack + ..." copies them first, and the copy is part of its time, because autograd does
not produce a matrix. "..., stacked already" gets the matrix for free, and does not count as the best eager baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..cases import ADAMW, GRADDROP, TWO_PASSES, Problem
from ..contender import EAGER, Contender
from ..oracle import Outcome

BLOCK = 1 << 16  # elements; 8 gradients and the combination of this size fit into a core's cache in float32


def contenders(operator: str, problem: Problem) -> Iterator[Contender]:
    """The eager baselines of an operator."""
    yield from FORMS[operator](problem)


def add_loop(problem: Problem) -> None:
    """Combines with torch.mul and add_, tensor by tensor."""
    first, *others = problem.factors
    for column, out in zip(problem.columns, problem.out, strict=True):
        torch.mul(column[0], first, out=out)
        for g, factor in zip(column[1:], others, strict=True):
            out.add_(g, alpha=factor)


def foreach_add(problem: Problem) -> None:
    """Combines with one torch._foreach_add_ per task."""
    torch._foreach_zero_(problem.out)
    for grads, factor in zip(problem.grads, problem.factors, strict=True):
        torch._foreach_add_(problem.out, grads, alpha=factor)


class DotLoop:
    """Computes <g_n, d> of every task with torch.dot, tensor by tensor, into a reused (N, K) buffer."""

    def __init__(self, problem: Problem) -> None:
        self.rows = [[g.view(-1) for g in column] for column in problem.columns]
        self.buffer = torch.zeros(len(self.rows), problem.tasks, dtype=problem.dtype, device=problem.device)
        self.cells = [row.unbind() for row in self.buffer]

    def along(self, direction: list[Tensor]) -> Tensor:
        for row, cells, d in zip(self.rows, self.cells, direction, strict=True):
            d = d.view(-1)
            for g, cell in zip(row, cells, strict=True):
                torch.dot(g, d, out=cell)
        return self.buffer.double().sum(0)

    def squares(self) -> Tensor:
        for row, cells in zip(self.rows, self.cells, strict=True):
            for g, cell in zip(row, cells, strict=True):
                torch.dot(g, g, out=cell)
        return self.buffer.double().sum(0)


def stack(problem: Problem) -> None:
    """Copies the gradients into the (K, P) matrix."""
    for row, grads in zip(problem.stacked, problem.grads, strict=True):
        torch.cat([g.view(-1) for g in grads], out=row)


def _split(problem: Problem) -> list[Tensor]:
    parts = problem.flat_out.split([column[0].numel() for column in problem.columns])
    return [part.view(column[0].shape) for part, column in zip(parts, problem.columns, strict=True)]


def _stacked(problem: Problem, name: str, run: Callable[[], Outcome]) -> Iterator[Contender]:
    """A function that reads the (K, P) matrix: with the time of copying the gradients into it, and without."""

    def with_stack() -> Outcome:
        stack(problem)
        return run()

    yield Contender(f"stack + {name}", EAGER, with_stack)
    yield Contender(f"{name}, stacked already", EAGER, run, counts=False)


def _blocks(problem: Problem) -> list[tuple[list[Tensor], Tensor]]:
    """Views of the gradients and the output, block after block."""
    return [
        (list(parts[:-1]), parts[-1])
        for column, out in zip(problem.columns, problem.out, strict=True)
        for parts in zip(*(t.view(-1).split(BLOCK) for t in (*column, out)), strict=True)
    ]


def _worth_blocks(problem: Problem) -> bool:
    return problem.device.type == "cpu" and len(problem.out) == 1 and problem.elements > BLOCK


# One function per operator: its eager forms.


def _combine(problem: Problem) -> Iterator[Contender]:
    out, first = problem.out, problem.factors[0]
    weights = problem.weights.to(problem.dtype)

    def loop() -> Outcome:
        add_loop(problem)
        return Outcome(combined=out)

    def foreach() -> Outcome:
        foreach_add(problem)
        return Outcome(combined=out)

    blocks = _blocks(problem) if _worth_blocks(problem) else []

    def blocked() -> Outcome:
        for grads, place in blocks:
            torch.mul(grads[0], first, out=place)
            for g, factor in zip(grads[1:], problem.factors[1:], strict=True):
                place.add_(g, alpha=factor)
        return Outcome(combined=out)

    parts = _split(problem)

    def mv() -> Outcome:
        torch.mv(problem.stacked.T, weights, out=problem.flat_out)
        return Outcome(combined=parts)

    yield Contender("loop of add_", EAGER, loop)
    if len(out) > 1:
        yield Contender("foreach add_", EAGER, foreach)
    if blocks:
        yield Contender("loop of add_, block by block", EAGER, blocked)
    yield from _stacked(problem, "mv", mv)


def _combine_dots(problem: Problem) -> Iterator[Contender]:
    out, first = problem.out, problem.factors[0]
    weights = problem.weights.to(problem.dtype)
    dot = DotLoop(problem)

    def loop() -> Outcome:
        add_loop(problem)
        return Outcome(combined=out, dots=dot.along(out), sqnorms=dot.squares())

    def foreach() -> Outcome:
        foreach_add(problem)
        sqnorms = torch.stack([torch.stack(torch._foreach_norm(grads)).square().sum() for grads in problem.grads])
        return Outcome(combined=out, dots=dot.along(out), sqnorms=sqnorms)

    blocks = _blocks(problem) if _worth_blocks(problem) else []
    sums = torch.zeros(len(blocks), 2, problem.tasks, dtype=problem.dtype, device=problem.device)
    cells = [[row.unbind() for row in block] for block in sums.unbind()]

    def blocked() -> Outcome:
        for (grads, place), (along, squares) in zip(blocks, cells, strict=True):
            torch.mul(grads[0], first, out=place)
            for g, factor in zip(grads[1:], problem.factors[1:], strict=True):
                place.add_(g, alpha=factor)
            for g, dot_cell, square_cell in zip(grads, along, squares, strict=True):
                torch.dot(g, place, out=dot_cell)
                torch.dot(g, g, out=square_cell)
        dots, sqnorms = sums.double().sum(0)
        return Outcome(combined=out, dots=dots, sqnorms=sqnorms)

    parts = _split(problem)
    dots, sqnorms, gram = (
        torch.zeros(n, dtype=problem.dtype, device=problem.device)
        for n in (problem.tasks, problem.tasks, (problem.tasks, problem.tasks))
    )

    def mv() -> Outcome:
        torch.mv(problem.stacked.T, weights, out=problem.flat_out)
        torch.mv(problem.stacked, problem.flat_out, out=dots)
        torch.linalg.vector_norm(problem.stacked, dim=1, out=sqnorms)
        return Outcome(combined=parts, dots=dots, sqnorms=sqnorms.square())

    def mm() -> Outcome:
        """Reads the gradients twice. All inner products follow from the Gram matrix."""
        torch.mv(problem.stacked.T, weights, out=problem.flat_out)
        torch.mm(problem.stacked, problem.stacked.T, out=gram)
        return Outcome(combined=parts, dots=gram @ weights, sqnorms=gram.diagonal())

    yield Contender("loops of add_ and dot", EAGER, loop)
    if len(out) > 1:
        yield Contender("foreach add_ and norm, loop of dot", EAGER, foreach)
    if blocks:
        yield Contender("loops of add_ and dot, block by block", EAGER, blocked)
    yield from _stacked(problem, "mv + mv + norm", mv)
    yield from _stacked(problem, "mv + G @ G.T", mm)


def _dots(problem: Problem) -> Iterator[Contender]:
    dot = DotLoop(problem)
    result = torch.zeros(problem.tasks, dtype=problem.dtype, device=problem.device)
    direction = torch.cat([d.view(-1) for d in problem.direction])

    def mv() -> Outcome:
        torch.mv(problem.stacked, direction, out=result)
        return Outcome(dots=result)

    yield Contender("loop of dot", EAGER, lambda: Outcome(dots=dot.along(problem.direction)))
    yield from _stacked(problem, "mv", mv)


def _gram(problem: Problem) -> Iterator[Contender]:
    result = torch.zeros(problem.tasks, problem.tasks, dtype=problem.dtype, device=problem.device)

    def mm() -> Outcome:
        torch.mm(problem.stacked, problem.stacked.T, out=result)
        return Outcome(gram=result)

    yield from _stacked(problem, "G @ G.T", mm)


def _gram_combine(problem: Problem) -> Iterator[Contender]:
    result = torch.zeros(problem.tasks, problem.tasks, dtype=problem.dtype, device=problem.device)
    weights = problem.weights.to(problem.dtype)
    parts = _split(problem)

    def mm() -> Outcome:
        torch.mm(problem.stacked, problem.stacked.T, out=result)
        torch.mv(problem.stacked.T, weights, out=problem.flat_out)
        return Outcome(gram=result, combined=parts)

    yield from _stacked(problem, "G @ G.T + mv", mm)


def _graddrop(problem: Problem) -> Iterator[Contender]:
    out = problem.out
    up, down, part = ([torch.zeros_like(t) for t in out] for _ in range(3))

    def loop() -> Outcome:
        """Adds the gradients of each sign, so only two sums of the model's size are kept."""
        for column, place, above, below, one in zip(problem.columns, out, up, down, part, strict=True):
            torch.clamp(column[0], min=0, out=above)
            torch.clamp(column[0], max=0, out=below)
            for g in column[1:]:
                above.add_(torch.clamp(g, min=0, out=one))
                below.add_(torch.clamp(g, max=0, out=one))
            torch.sub(above, below, out=one)
            one.mul_(torch.rand_like(one))  # P > U, multiplied by the sum of the sizes
            torch.where(above > one, above, below, out=place)
        return Outcome(signs=out)

    parts = _split(problem)

    def masks() -> Outcome:
        """As the papers and TorchJD write it."""
        matrix = problem.stacked
        share = 0.5 * (1 + matrix.sum(0) / matrix.abs().sum(0))
        above = share > torch.rand_like(share)
        torch.sum(matrix * ((matrix > 0) == above), 0, out=problem.flat_out)
        return Outcome(signs=parts)

    yield Contender("loop of clamp and add_, rand", EAGER, loop)
    yield from _stacked(problem, "masks", masks)


def same_moments(problem: Problem) -> bool:
    """Whether torch's AdamW keeps the moments in the same dtype as combine_adamw_."""
    return problem.dtype in (torch.float32, torch.float64)


def fused_adamw(problem: Problem) -> torch.optim.AdamW:
    """torch's fused AdamW on the problem's parameters and moments. Its gradients are the problem's outputs."""
    params, averages, squares = problem.state
    for p, grad in zip(params, problem.out, strict=True):
        p.grad = grad
    options: dict[str, Any] = {k: ADAMW[k] for k in ("lr", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(
        params,
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        fused=True,
        capturable=problem.device.type == "cuda",
        **options,
    )
    for p, m, v in zip(params, averages, squares, strict=True):
        optimizer.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": m, "exp_avg_sq": v}
    return optimizer


def _combine_adamw(problem: Problem) -> Iterator[Contender]:
    if not same_moments(problem):
        return
    forms: dict[str, Callable[[Problem], None]] = {"loop of add_": add_loop}
    if len(problem.out) > 1:
        forms["foreach add_"] = foreach_add
    for name, form in forms.items():
        optimizer = fused_adamw(problem)

        def run(form: Callable[[Problem], None] = form, optimizer: torch.optim.AdamW = optimizer) -> Outcome:
            form(problem)
            optimizer.step()
            return Outcome(state=True)

        yield Contender(f"{name} + AdamW(fused)", EAGER, run)


FORMS: dict[str, Callable[[Problem], Iterator[Contender]]] = {
    "combine": _combine,
    "combine_dots": _combine_dots,
    "dots": _dots,
    "gram": _gram,
    GRADDROP: _graddrop,
    TWO_PASSES: _gram_combine,
    "combine_adamw_": _combine_adamw,
}
