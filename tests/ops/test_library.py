"""torch.library and torch.compile with the default backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cats import ops
from cats.ops import dispatch
from tests.ops.small import ADAMW, SHAPES, WEIGHTS, make


def state() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return tuple([torch.full(s, value) for s in SHAPES] for value in (1.0, 0.1, 0.2))  # type: ignore[return-value]


def flat_out(rows: int) -> list[Tensor]:
    return [torch.zeros(s) for s in SHAPES[:4] * rows]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_operators_pass_opcheck(rows: int, requires_grad: bool) -> None:
    flat = [g for row in make(requires_grad) for g in row]
    weights = torch.tensor([WEIGHTS] * rows, dtype=torch.float64)
    namespace, groups = torch.ops.cats, [0, 2, 0, 0, 1]
    direction = [torch.ones(s) for s in SHAPES[:4]] + [None]
    torch.library.opcheck(namespace.combine.default, (flat, 3, weights, flat_out(rows), None))
    torch.library.opcheck(namespace.combine_dots.default, (flat, 3, weights, flat_out(rows), groups, None))
    if rows == 1:
        torch.library.opcheck(namespace.dots.default, (flat, 3, direction, groups, None))
        torch.library.opcheck(namespace.gram.default, (flat, 3, groups, None))
        positions = [i << 40 for i in range(5)]
        torch.library.opcheck(namespace.graddrop.default, (flat, 3, weights.abs(), flat_out(1), 5, 2, positions, None))
        params, exp_avgs, exp_avg_sqs = state()
        scalars = (torch.tensor(1.0), torch.tensor(0.1), 0.9, 0.98, 1e-8, 0.01)
        for extra in ((None, None), (torch.tensor(0.0), torch.tensor(2.0))):
            torch.library.opcheck(
                namespace.combine_adamw_.default,
                (params, flat, 3, weights, exp_avgs, exp_avg_sqs, *scalars, *extra, groups, None),
            )


def calls() -> list[tuple[str, Callable[..., Any]]]:
    rows = torch.tensor([WEIGHTS, [1.0, 0.0, 0.0]], dtype=torch.float64)

    def combine(grads: Any) -> Any:
        return ops.combine([[None if g is None else 2 * g for g in row] for row in grads], WEIGHTS)[0] + 1

    def combine_dots(grads: Any) -> Any:
        combined, dots, sqnorms = ops.combine_dots(grads, rows, groups=[0, 1, 0, 1, 2])
        return combined[1][0] * dots.sum(), combined[0][4], sqnorms

    def adamw(grads: Any) -> Any:
        params, exp_avgs, exp_avg_sqs = state()
        dots, _ = ops.combine_adamw_(params, grads, rows[0], exp_avgs, exp_avg_sqs, **ADAMW)
        return params, exp_avgs, exp_avg_sqs, dots

    return [
        ("combine", combine),
        ("combine_dots", combine_dots),
        ("dots", lambda grads: ops.dots(grads, [torch.ones(s) for s in SHAPES[:4]] + [None]) + 1),
        ("gram", lambda grads: ops.gram(grads).trace()),
        ("graddrop", lambda grads: ops.graddrop(grads, seed=5, step=2, leak=0.5)[0] + 1),
        ("combine_adamw_", adamw),
    ]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "call"), calls(), ids=lambda v: v if isinstance(v, str) else "")
def test_compiles_without_a_break(name: str, call: Callable[..., Any], backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    for grads in (make(), make(requires_grad=True)):
        torch.testing.assert_close(compiled(grads), call(grads), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_code_writes_into_out(backend: str) -> None:
    torch.compiler.reset()

    def call(grads: Any, weights: list[float], out: Any) -> Any:
        return ops.combine_dots(grads, weights, out=out)[1:]

    compiled, grads = torch.compile(call, backend=backend, fullgraph=True), make()
    out = [torch.zeros(s) for s in SHAPES[:4]] + [None]
    for weights in ([0.5, 0.25, -1.0], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]):
        expected = ops.combine_dots(grads, weights)
        dots, sqnorms = compiled(grads, weights, out)
        assert torch.equal(dots, expected[1]) and torch.equal(sqnorms, expected[2])
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(out, expected[0], strict=True))


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch does not have the tag")
def test_inductor_leaves_the_operators_out_of_its_cuda_graphs() -> None:
    for name in dispatch.OPERATORS:
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.cats, name).default.tags, name


def test_compiled_results_have_the_strides_of_the_gradients() -> None:
    torch.compiler.reset()
    last = torch.arange(48.0).view(2, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    grads = [[last, torch.ones(1, 3).expand(4, 3)]] * 2
    compiled = torch.compile(lambda grads: ops.combine(grads, [1.0, 2.0]), backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(grads), ops.combine(grads, [1.0, 2.0]), strict=True):
        assert torch.equal(got, expected) and got.stride() == expected.stride()


def test_shapes_are_known_without_data() -> None:
    grads = [[None if g is None else g.to("meta") for g in row] for row in make()]
    combined, dots, sqnorms = ops.combine_dots(grads, torch.empty(2, 3, device="meta"), groups=[0, 0, 1, 0, 0])
    assert [[None if t is None else tuple(t.shape) for t in row] for row in combined] == [[*SHAPES[:4], None]] * 2
    assert (dots.shape, sqnorms.shape, dots.dtype, dots.device.type) == ((2, 2, 3), (2, 3), torch.float64, "meta")
    assert ops.gram(grads).shape == (3, 3)


def freed(t: Tensor) -> Tensor:
    t.untyped_storage().resize_(0)
    return t


def test_freed_tensors_are_refused_here_too() -> None:
    grads, weights = [g for row in make() for g in row], torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="has no memory: its storage was freed"):
        torch.ops.cats.combine(grads, 3, freed(weights.clone()), flat_out(1), None)
    params, exp_avgs, exp_avg_sqs = state()
    rest = (0.1, 0.9, 0.1, 0.0, None, None, [0] * 5, None)
    with pytest.raises(ValueError, match="has no memory: its storage was freed"):
        torch.ops.cats.combine_adamw_(
            params, grads, 3, weights, exp_avgs, exp_avg_sqs, torch.tensor(1.0), freed(torch.tensor(0.1)), *rest
        )
    assert all((p == 1).all() for p in params)  # nothing has been written
