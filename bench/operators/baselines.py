"""Who computes an operator: the backends of cats.ops, the best plain-torch forms, these compiled, and TorchJD.

Every contender reads the problem's gradients and writes its reused outputs. A form that wants the gradients as one
matrix is there twice: "stack + ..." copies them first, which is part of its time, since autograd does not leave a
matrix; "..., stacked already" is given the matrix and does not count as the best eager form.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cats import ops

from .cases import ADAMW, TWO_PASSES, Problem
from .oracle import Outcome

BACKEND, COMPOSED, EAGER, COMPILED, TORCHJD = "backend", "backend + torch", "eager", "compiled", "torchjd"

BLOCK = 1 << 16  # elements: of so many, 8 gradients and the combination fit a core's cache in float32
REFERENCE_ELEMENTS = 10**7  # K P; beyond it, on a CPU, cats.reference would take most of a case's time
UNROLLED_PAIRS = 64  # K (K + 1) / 2 inner products in one compiled function


@dataclass
class Contender:
    """`run` does the work and says where the results are. `counts`: whether it may be the best of its kind."""

    name: str
    kind: str
    run: Callable[[], Outcome]
    counts: bool = True


class Absent(Exception):
    """A contender that cannot take part; the text says why."""


def usable(device: torch.device) -> list[str]:
    """The backends that compute on this device."""
    elsewhere = {"native"} if device.type == "cuda" else {"triton", "cuda"}  # Triton's interpreter is for tests
    return [name for name, reason in ops.backends().items() if reason is None and name not in elsewhere]


def contenders(operator: str, problem: Problem) -> Iterator[Contender]:
    """The backends and the eager forms of an operator."""
    backends = usable(problem.device)
    large = problem.device.type == "cpu" and problem.tasks * problem.elements > REFERENCE_ELEMENTS
    if large and backends != ["reference"]:
        backends.remove("reference")
    for backend in backends:
        yield Contender(backend, BACKEND, call(operator, problem, backend))
        if operator == "combine_adamw_" and backend != "reference" and _same_moments(problem):
            yield Contender(f"{backend} combine + AdamW(fused)", COMPOSED, _then_adamw(problem, backend))
    yield from EAGER_FORMS[operator](problem)


def call(operator: str, problem: Problem, backend: str) -> Callable[[], Outcome]:
    """The operator of cats.ops, by one backend."""
    grads, weights, out = problem.grads, problem.weights, problem.out
    options = ADAMW | {"step": 1}
    if problem.device.type == "cuda":  # as a caller who captures CUDA graphs would
        options |= {
            name: torch.full((), options[name], dtype=torch.float64, device=problem.device) for name in ("step", "lr")
        }

    def combine() -> Outcome:
        ops.combine(grads, weights, out=out, backend=backend)
        return Outcome(combined=out)

    def combine_dots() -> Outcome:
        _, dots, sqnorms = ops.combine_dots(grads, weights, out=out, backend=backend)
        return Outcome(combined=out, dots=dots, sqnorms=sqnorms)

    def dots() -> Outcome:
        return Outcome(dots=ops.dots(grads, problem.direction, backend=backend))

    def gram() -> Outcome:
        return Outcome(gram=ops.gram(grads, backend=backend))

    def gram_combine() -> Outcome:
        matrix = ops.gram(grads, backend=backend)
        ops.combine(grads, weights, out=out, backend=backend)
        return Outcome(gram=matrix, combined=out)

    def combine_adamw_() -> Outcome:
        params, averages, squares = problem.state
        dots, sqnorms = ops.combine_adamw_(params, grads, weights, averages, squares, backend=backend, **options)
        return Outcome(dots=dots, sqnorms=sqnorms, state=True)

    return {
        "combine": combine,
        "combine_dots": combine_dots,
        "dots": dots,
        "gram": gram,
        TWO_PASSES: gram_combine,
        "combine_adamw_": combine_adamw_,
    }[operator]


# The pieces of the eager forms.


def add_loop(problem: Problem) -> None:
    first, *others = problem.factors
    for column, out in zip(problem.columns, problem.out, strict=True):
        torch.mul(column[0], first, out=out)
        for g, factor in zip(column[1:], others, strict=True):
            out.add_(g, alpha=factor)


def foreach_add(problem: Problem) -> None:
    torch._foreach_zero_(problem.out)
    for grads, factor in zip(problem.grads, problem.factors, strict=True):
        torch._foreach_add_(problem.out, grads, alpha=factor)


class DotLoop:
    """<g_n, d> of every task by torch.dot, tensor by tensor, into a reused (N, K) buffer."""

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
    for row, grads in zip(problem.stacked, problem.grads, strict=True):
        torch.cat([g.view(-1) for g in grads], out=row)


def _split(problem: Problem) -> list[Tensor]:
    parts = problem.flat_out.split([column[0].numel() for column in problem.columns])
    return [part.view(column[0].shape) for part, column in zip(parts, problem.columns, strict=True)]


def _stacked(problem: Problem, name: str, run: Callable[[], Outcome]) -> Iterator[Contender]:
    """A form on the (K, P) matrix, with and without making the matrix."""

    def with_stack() -> Outcome:
        stack(problem)
        return run()

    yield Contender(f"stack + {name}", EAGER, with_stack)
    yield Contender(f"{name}, stacked already", EAGER, run, counts=False)


def _blocks(problem: Problem) -> list[tuple[list[Tensor], Tensor]]:
    """Views of the gradients and the output, block by block."""
    return [
        (list(parts[:-1]), parts[-1])
        for column, out in zip(problem.columns, problem.out, strict=True)
        for parts in zip(*(t.view(-1).split(BLOCK) for t in (*column, out)), strict=True)
    ]


def _worth_blocks(problem: Problem) -> bool:
    return problem.device.type == "cpu" and len(problem.out) == 1 and problem.elements > BLOCK


# The eager forms of each operator.


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
        """Two reads: all inner products are in the Gram matrix."""
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


def _same_moments(problem: Problem) -> bool:
    """Whether torch's AdamW would hold the moments in the dtype that combine_adamw_ does."""
    return problem.dtype in (torch.float32, torch.float64)


def _adamw(problem: Problem) -> torch.optim.AdamW:
    """torch's fused AdamW on the problem's parameters and moments, its gradients the problem's outputs."""
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


def _then_adamw(problem: Problem, backend: str) -> Callable[[], Outcome]:
    combine, optimizer = call("combine", problem, backend), _adamw(problem)

    def run() -> Outcome:
        combine()
        optimizer.step()
        return Outcome(state=True)

    return run


def _combine_adamw(problem: Problem) -> Iterator[Contender]:
    if not _same_moments(problem):
        return
    forms: dict[str, Callable[[Problem], None]] = {"loop of add_": add_loop}
    if len(problem.out) > 1:
        forms["foreach add_"] = foreach_add
    for name, form in forms.items():
        optimizer = _adamw(problem)

        def run(form: Callable[[Problem], None] = form, optimizer: torch.optim.AdamW = optimizer) -> Outcome:
            form(problem)
            optimizer.step()
            return Outcome(state=True)

        yield Contender(f"{name} + AdamW(fused)", EAGER, run)


EAGER_FORMS: dict[str, Callable[[Problem], Iterator[Contender]]] = {
    "combine": _combine,
    "combine_dots": _combine_dots,
    "dots": _dots,
    "gram": _gram,
    TWO_PASSES: _gram_combine,
    "combine_adamw_": _combine_adamw,
}


# Compiled: the K-unrolled list form of one parameter, one pass over memory if the compiler sees it.


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
    """The lower triangle, row after row."""
    wide = [_wide(g) for g in grads]
    return torch.stack([(wide[i] * wide[j]).sum() for i in range(len(wide)) for j in range(i + 1)])


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


def compiled(operator: str, problem: Problem) -> Contender:
    """The K-unrolled form under torch.compile; nothing is compiled before the first run.

    One function serves one parameter, as flat memory. For a list of parameters it is compiled once for any length:
    a function of all K N tensors would take minutes to compile, and again whenever a gradient is None.

    Raises:
        Absent: there is no such form, or it would be too large.
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

    elif operator == "gram":
        if problem.tasks * (problem.tasks + 1) // 2 > UNROLLED_PAIRS:
            raise Absent(f"{problem.tasks * (problem.tasks + 1) // 2} inner products are too many to unroll")
        gram_of = torch.compile(unrolled_gram, **options)
        place = torch.tril_indices(problem.tasks, problem.tasks, device=problem.device)

        def run() -> Outcome:
            triangle = torch.stack([gram_of(row) for row in rows]).double().sum(0)
            matrix = triangle.new_zeros(problem.tasks, problem.tasks)
            matrix[place[0], place[1]] = triangle
            return Outcome(gram=matrix + matrix.tril(-1).T)

    elif operator == "combine_adamw_":
        if not _same_moments(problem):
            raise Absent("AdamW is compiled for float32 and float64 parameters only")
        update = torch.compile(unrolled_adamw, **options)
        step = torch.ones((), dtype=weights.dtype, device=problem.device)
        state = [[t.view(-1) for t in tensors] for tensors in problem.state]

        def run() -> Outcome:
            for row, p, m, v in zip(rows, *state, strict=True):
                update(row, weights, p, m, v, step)
            return Outcome(state=True)

    else:
        raise Absent("no compiled form")
    return Contender(name, COMPILED, run)


# TorchJD 0.18: what its jac_to_grad does between .jac and .grad. Its .jac fields are K rows in one tensor, and making
# them is not part of the time; it offers no outputs to reuse.


def torchjd(operator: str, problem: Problem) -> Iterator[Contender]:
    """TorchJD's path from per-task gradients to the combined one, by its public functions.

    With known weights: aggregation.Constant. With the Gram matrix: a GramianWeightedAggregator whose weighting returns
    the same known weights, so that no solver is timed.

    Raises:
        Absent: TorchJD is not installed, or has no such path.
    """
    if operator not in ("combine", "combine_dots", TWO_PASSES):
        raise Absent("TorchJD has no such operation")
    if importlib.util.find_spec("torchjd") is None:
        raise Absent("TorchJD is not installed; pip install torchjd")
    aggregation: Any = importlib.import_module("torchjd.aggregation")
    autojac: Any = importlib.import_module("torchjd.autojac")

    weights = problem.weights.to(problem.dtype)

    class Known(aggregation.Weighting):
        def forward(self, gramian: Tensor, /) -> Tensor:
            return weights

    params = [torch.zeros_like(t).requires_grad_() for t in problem.out]
    lengths = [t.numel() for t in problem.out]
    whole = problem.stacked if len(params) == 1 else problem.stacked.clone()
    for p, jac in zip(params, whole.split(lengths, 1), strict=True):
        p.jac = jac.reshape(problem.tasks, *p.shape)  # type: ignore[attr-defined]

    def to_grad(**options: Any) -> Callable[[], Outcome]:
        def run() -> Outcome:
            for p in params:
                p.grad = None
            autojac.jac_to_grad(params, retain_jac=True, **options)
            return Outcome(combined=[p.grad for p in params if p.grad is not None])

        return run

    if operator == TWO_PASSES:
        aggregator = aggregation.GramianWeightedAggregator(Known())
        yield Contender("TorchJD jac_to_grad", TORCHJD, to_grad(aggregator=aggregator))
        without_copy = to_grad(aggregator=aggregator, optimize_gramian_computation=True)
        yield Contender("TorchJD jac_to_grad, optimize_gramian_computation", TORCHJD, without_copy)
    else:
        yield Contender("TorchJD jac_to_grad", TORCHJD, to_grad(aggregator=aggregation.Constant(weights)))
