"""The backends of cats.ops as contenders."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from cats import ops
from cats.ops import dispatch

from .baselines.eager import fused_adamw, same_moments
from .cases import ADAMW, GRADDROP, TWO_PASSES, Problem
from .contender import BACKEND, COMPOSED, Contender
from .oracle import Outcome

REFERENCE_ELEMENTS = 10**7  # K P; the reference backend would take most of a larger case's time


def usable(device: torch.device, operator: str = "") -> list[str]:
    """The backends that compute on this device, and have the operator, if one is named."""
    elsewhere = {"native"} if device.type == "cuda" else {"triton", "cuda"}  # Triton's interpreter is for tests only
    found = [name for name, reason in ops.backends().items() if reason is None and name not in elsewhere]
    parts = [part for part in operator.split(", ") if part]
    return [name for name in found if all(hasattr(dispatch.load(name), part) for part in parts)]


def contenders(operator: str, problem: Problem) -> Iterator[Contender]:
    """The backends; for combine_adamw_ also each backend's combine followed by torch's AdamW."""
    backends = usable(problem.device, operator)
    if problem.tasks * problem.elements > REFERENCE_ELEMENTS and backends != ["reference"]:
        backends.remove("reference")
    for backend in backends:
        yield Contender(backend, BACKEND, call(operator, problem, backend))
        if operator == "combine_adamw_" and backend != "reference" and same_moments(problem):
            yield Contender(f"{backend} combine + AdamW(fused)", COMPOSED, _combine_then_adamw(problem, backend))


def call(operator: str, problem: Problem, backend: str) -> Callable[[], Outcome]:
    """A function that calls an operator of cats.ops with one backend."""
    grads, weights, out = problem.grads, problem.weights, problem.out
    options = ADAMW | {"step": 1}
    if problem.device.type == "cuda":  # pass step and lr as tensors, as code that captures CUDA graphs does
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

    def graddrop() -> Outcome:
        return Outcome(signs=ops.graddrop(grads, seed=1, out=out, backend=backend))

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
        GRADDROP: graddrop,
        TWO_PASSES: gram_combine,
        "combine_adamw_": combine_adamw_,
    }[operator]


def _combine_then_adamw(problem: Problem, backend: str) -> Callable[[], Outcome]:
    combine, optimizer = call("combine", problem, backend), fused_adamw(problem)

    def run() -> Outcome:
        combine()
        optimizer.step()
        return Outcome(state=True)

    return run
