"""The public functions with the default backend: forms of weights, results, out=."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from cats import ops
from tests.ops.small import ADAMW, GOOD, WEIGHTS, make


@pytest.mark.parametrize(
    "weights",
    [
        tuple(WEIGHTS),
        torch.tensor(WEIGHTS),
        torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True),
        [torch.tensor(w) for w in WEIGHTS],
        (w for w in WEIGHTS),
    ],
    ids=["tuple", "float32", "float64", "scalars", "generator"],
)
def test_weights_come_in_many_forms(weights: Any) -> None:
    combined = ops.combine(make(), weights)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(combined, ops.combine(make(), WEIGHTS), strict=True))


def test_weights_are_float64() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert ops.combine([[one], [one]], [1.0, 2.0**-50])[0].item() == 1 + 2.0**-50
    assert ops.combine([[one], [one]], [[1.0, 0.1], [0.0, 0.1]])[1][0].item() == 0.1


def test_results_never_require_grad() -> None:
    leaf = torch.ones(3, requires_grad=True)
    combined, dots, sqnorms = ops.combine_dots([[leaf * 2], [leaf]], torch.ones(2, requires_grad=True))
    assert not any(
        t.requires_grad for t in (combined[0], dots, sqnorms, ops.gram([[leaf]]), ops.dots([[leaf]], [leaf]))
    )
    assert torch.equal(combined[0], torch.full((3,), 3.0))


def test_results_share_no_memory_with_the_gradients() -> None:
    (g,) = gradient = [torch.ones(3)]
    (combined,) = ops.combine([gradient], [1.0])
    combined.zero_()
    assert g.sum() == 3


def test_out_is_written_again() -> None:
    grads = make()
    out, *_ = ops.combine_dots(grads, WEIGHTS)
    pointers = [None if t is None else t.data_ptr() for t in out]
    version = out[0]._version
    doubled = ops.combine(grads, [2 * w for w in WEIGHTS], out=out)
    assert all(a is b for a, b in zip(doubled, out, strict=True))
    assert [None if t is None else t.data_ptr() for t in out] == pointers
    assert torch.equal(out[0], 2 * ops.combine(grads, WEIGHTS)[0])
    assert out[0]._version > version  # so autograd notices the change


def test_out_of_several_combinations() -> None:
    grads, weights = make(), [WEIGHTS, [1.0, 0.0, 0.0]]
    out = ops.combine(grads, weights)
    again, dots, _ = ops.combine_dots(grads, weights, out=out)
    assert all(a is b for r in range(2) for a, b in zip(again[r], out[r], strict=True))
    assert dots.shape == (2, 3)


def test_out_may_lack_tensors_and_keep_others() -> None:
    grads, kept = make(), torch.full((6,), 7.0)
    out = ops.combine(grads, WEIGHTS, out=[None, torch.zeros(5), None, None, kept])
    assert torch.equal(out[0], ops.combine(grads, WEIGHTS)[0])
    assert out[4] is None and (kept == 7).all()


def test_no_gradient_at_all() -> None:
    nothing: list[list[Tensor | None]] = [[None, None]] * 3
    combined, dots, sqnorms = ops.combine_dots(nothing, WEIGHTS)
    assert combined == [None, None] == ops.combine(nothing, WEIGHTS)
    assert dots.tolist() == sqnorms.tolist() == ops.dots(nothing, [torch.ones(3), None]).tolist() == [0.0] * 3
    assert ops.gram(nothing, groups=[1, 0]).tolist() == [[[0.0] * 3] * 3] * 2


def test_dots_with_none_in_the_direction() -> None:
    grads = [[torch.ones(2), torch.ones(3)], [torch.ones(2), None]]
    assert ops.dots(grads, [torch.ones(2), None]).tolist() == [2.0, 2.0]
    assert ops.dots(grads, [None, torch.ones(3, dtype=torch.bfloat16)]).tolist() == [3.0, 0.0]


def test_a_default_device_elsewhere_does_not_matter() -> None:
    expected = ops.combine_dots(GOOD, [1.0, 1.0])
    with torch.device("meta"):
        found = ops.combine_dots(GOOD, [1.0, 1.0])
        gram = ops.gram(GOOD)
        update = [[torch.ones(2, device="cpu"), torch.ones(3, device="cpu")] for _ in range(3)]
        ops.combine_adamw_(update[0], GOOD, [1.0, 1.0], update[1], update[2], **ADAMW)
    for a, b in zip(found[0] + list(found[1:]), expected[0] + list(expected[1:]), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(gram, ops.gram(GOOD)) and torch.isfinite(update[0][0]).all()


def test_backends_is_a_function_and_a_package() -> None:
    if reason := ops.backends()["native"]:
        pytest.skip(reason)
    import cats.ops.backends.native as module

    assert module is importlib.import_module("cats.ops.backends").native
    assert set(ops.backends()) == {"reference", "native", "triton", "cuda"} and ops.backends()["reference"] is None
