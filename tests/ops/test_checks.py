"""Every error about arguments: its message is one line that names the task and the parameter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cats import ops
from tests.ops.small import ADAMW, GOOD, grads_with

SPARSE = torch.ones(3).to_sparse()
BAD_GRADS = {
    "no tasks": ([], ValueError, "there are no tasks: grads is empty (K = 0)"),
    "no parameters": ([[], []], ValueError, "there are no parameters: task 0 has no gradients (N = 0)"),
    "lengths": ([[torch.ones(2)], []], ValueError, "task 1 has 0 gradients, but task 0 has 1"),
    "one tensor": ([[torch.ones(2)], torch.ones(2, 2)], TypeError, "task 1: expected a sequence of one gradient"),
    "no row": (
        [[torch.ones(2)], None],
        TypeError,
        "task 1: expected a sequence of one gradient per parameter, got None",
    ),
    "row that is none": (
        [[torch.ones(2)], 3],
        TypeError,
        "task 1: expected a sequence of one gradient per parameter, got int",
    ),
    "shape": (
        grads_with(1, 1, torch.ones(3, 1)),
        ValueError,
        "task 1, parameter 1: shape (3, 1), but task 0 has (3,)",
    ),
    "dtype": (
        grads_with(1, 0, torch.ones(2).double()),
        TypeError,
        "task 1, parameter 0: dtype torch.float64, but task 0 has torch.float32",
    ),
    "sparse": (grads_with(0, 1, SPARSE), TypeError, "task 0, parameter 1: torch.sparse_coo is not supported"),
    "sparse later": (grads_with(1, 1, SPARSE), TypeError, "task 1, parameter 1: torch.sparse_coo is not supported"),
    "device": (
        grads_with(1, 0, torch.ones(2, device="meta")),
        ValueError,
        "task 1, parameter 0: on meta, but the gradients before it are on cpu",
    ),
    "device of another parameter": (
        [[torch.ones(2), torch.ones(3, device="meta")]],
        ValueError,
        "task 0, parameter 1: on meta",
    ),
    "complex": (
        grads_with(0, 0, torch.ones(2) + 0j),
        TypeError,
        "task 0, parameter 0: torch.complex64 is not supported",
    ),
    "integer": (grads_with(0, 0, torch.ones(2).int()), TypeError, "task 0, parameter 0: torch.int32 is not supported"),
    "number": (grads_with(1, 1, 3.0), TypeError, "task 1, parameter 1: expected a tensor, got float"),
    "after a None": (
        [[None], [torch.ones(2)], [torch.ones(3)]],
        ValueError,
        "task 2, parameter 0: shape (3,), but task 1 has (2,)",
    ),
}


@pytest.mark.parametrize(("grads", "error", "message"), BAD_GRADS.values(), ids=list(BAD_GRADS))
def test_complaints_about_gradients(grads: Any, error: type[Exception], message: str) -> None:
    weights = [1.0] * max(1, len(grads))
    direction = [torch.ones(2), torch.ones(3)]
    for call in (
        lambda: ops.combine(grads, weights),
        lambda: ops.combine_dots(grads, weights),
        lambda: ops.dots(grads, direction),
        lambda: ops.gram(grads),
        lambda: ops.combine_adamw_(direction, grads, weights, direction, direction, **ADAMW),
    ):
        with pytest.raises(error, match=re.escape(message)) as caught:
            call()
        assert "\n" not in str(caught.value)


def state() -> tuple[Any, ...]:
    """The first five arguments of combine_adamw_."""
    params, exp_avgs, exp_avg_sqs = ([torch.ones(2), torch.ones(3)] for _ in range(3))
    return params, GOOD, [1.0, 1.0], exp_avgs, exp_avg_sqs


BAD_ARGUMENTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "weights too few": (
        lambda: ops.combine(GOOD, [1.0]),
        ValueError,
        "weights has shape (1,), but 2 tasks need (2,) or (R, 2)",
    ),
    "weights tensor": (
        lambda: ops.combine(GOOD, torch.ones(2, 3)),
        ValueError,
        "weights has shape (2, 3), but 2 tasks need (2,) or (R, 2)",
    ),
    "weights scalar": (lambda: ops.combine(GOOD, torch.tensor(1.0)), ValueError, "weights has shape ()"),
    "weights no rows": (lambda: ops.combine(GOOD, torch.ones(0, 2)), ValueError, "weights has shape (0, 2)"),
    "weights device": (
        lambda: ops.combine(GOOD, torch.ones(2, device="meta")),
        ValueError,
        "weights are on meta, but the gradients are on cpu",
    ),
    "weights number": (
        lambda: ops.combine(GOOD, 0.5),  # type: ignore[arg-type]
        TypeError,
        "weights must be numbers, one per task, or a tensor, not float",
    ),
    "weights ragged": (
        lambda: ops.combine(GOOD, [[1.0, 2.0], [1.0]]),
        ValueError,
        "weights[1] has 1 entries, but there are 2 tasks",
    ),
    "weights complex": (lambda: ops.combine(GOOD, torch.ones(2) + 0j), TypeError, "weights must be real"),
    "groups length": (
        lambda: ops.gram(GOOD, groups=[0]),
        ValueError,
        "groups has 1 entries, but there are 2 parameters",
    ),
    "groups negative": (
        lambda: ops.dots(GOOD, GOOD[0], groups=[0, -1]),
        ValueError,
        "groups[1] is -1: groups are counted from 0",
    ),
    "groups type": (
        lambda: ops.combine_dots(GOOD, [1.0, 1.0], groups=[0, 1.0]),  # type: ignore[list-item]
        TypeError,
        "groups[1] must be an int, not float",
    ),
    "out length": (
        lambda: ops.combine(GOOD, [1.0, 1.0], out=[torch.ones(2)]),
        ValueError,
        "out has 1 entries, but there are 2 parameters",
    ),
    "out rows": (
        lambda: ops.combine(GOOD, [[1.0, 1.0]], out=[]),
        ValueError,
        "out has 0 lists, but there are 1 rows of weights",
    ),
    "out shape": (
        lambda: ops.combine(GOOD, [[1.0, 1.0]], out=[[torch.ones(2), torch.ones(2)]]),
        ValueError,
        "out[0][1]: shape (2,), but task 0, parameter 1 has (3,)",
    ),
    "out dtype": (
        lambda: ops.combine(GOOD, [1.0, 1.0], out=[torch.ones(2).double(), None]),
        TypeError,
        "out[0]: dtype torch.float64, but gradients of torch.float32 need torch.float32",
    ),
    "out device": (
        lambda: ops.combine(GOOD, [1.0, 1.0], out=[torch.ones(2, device="meta"), None]),
        ValueError,
        "out[0]: on meta, but the gradients before it are on cpu",
    ),
    "out expanded": (
        lambda: ops.combine(GOOD, [1.0, 1.0], out=[torch.ones(1).expand(2), None]),
        ValueError,
        "out[0]: an expanded tensor cannot be written into",
    ),
    "direction length": (
        lambda: ops.dots(GOOD, [torch.ones(2)]),
        ValueError,
        "direction has 1 entries, but there are 2 parameters",
    ),
    "direction shape": (
        lambda: ops.dots(GOOD, [torch.ones(2), torch.ones(1)]),
        ValueError,
        "direction[1]: shape (1,), but task 0, parameter 1 has (3,)",
    ),
    "params missing": (
        lambda: ops.combine_adamw_([torch.ones(2), None], GOOD, [1.0, 1.0], *GOOD, **ADAMW),  # type: ignore[list-item]
        TypeError,
        "params[1]: expected a tensor, got NoneType",
    ),
    "params dtype": (
        lambda: ops.combine_adamw_([torch.ones(2), torch.ones(3).half()], GOOD, [1.0, 1.0], *GOOD, **ADAMW),
        TypeError,
        "params[1]: dtype torch.float16, but gradients of torch.float32 need torch.float32",
    ),
    "moments dtype": (
        lambda: ops.combine_adamw_(
            GOOD[0], GOOD, [1.0, 1.0], GOOD[0], [torch.ones(2).double(), torch.ones(3)], **ADAMW
        ),
        TypeError,
        "exp_avg_sqs[0]: dtype torch.float64, but gradients of torch.float32 need torch.float32",
    ),
    "several combinations": (
        lambda: ops.combine_adamw_(GOOD[0], GOOD, [[1.0, 1.0]], *GOOD, **ADAMW),
        ValueError,
        "weights has shape (1, 2), but an update takes one combination, (2,)",
    ),
    "step": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"step": 0}),
        ValueError,
        "step is 0, but must be at least 1",
    ),
    "lr": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"lr": torch.ones(2)}),
        ValueError,
        "lr has shape (2,), but must have one element",
    ),
    "beta": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"beta1": 1.0}),
        ValueError,
        "beta1 is 1 and beta2 is 0.98, but both must be below 1",
    ),
    "step tensor": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"step": torch.zeros(())}),
        ValueError,
        "step is 0, but must be at least 1",
    ),
    "step nan": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"step": float("nan")}),
        ValueError,
        "step is nan, but must be at least 1",
    ),
    "lr negative": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"lr": torch.tensor(-0.5)}),
        ValueError,
        "lr is -0.5, but must be at least 0",
    ),
    "eps": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"eps": -1e-8}),
        ValueError,
        "eps is -1e-08, but must be at least 0",
    ),
    "weight decay": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"weight_decay": float("nan")}),
        ValueError,
        "weight_decay is nan, but must be at least 0",
    ),
    "beta negative": (
        lambda: ops.combine_adamw_(*state(), **ADAMW | {"beta2": torch.tensor(-0.5)}),
        ValueError,
        "beta2 is -0.5, but must be at least 0",
    ),
    "weights without order": (
        lambda: ops.combine(GOOD, {0.5, 1.5}),
        TypeError,
        "weights must be numbers, one per task, or a tensor, not set",
    ),
    "weights by name": (
        lambda: ops.combine(GOOD, {0: 0.5, 1: 1.5}),
        TypeError,
        "weights must be numbers, one per task, or a tensor, not dict",
    ),
    "groups huge": (
        lambda: ops.gram(GOOD, groups=[0, 2**70]),
        ValueError,
        f"groups[1] is {2**70}, but must be below {2**31}",
    ),
    "backend": (
        lambda: ops.gram(GOOD, backend="fastest"),
        ValueError,
        "there is no backend 'fastest'; the backends are reference, native, triton, cuda",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_ARGUMENTS.values(), ids=list(BAD_ARGUMENTS))
def test_complaints_about_the_rest(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
