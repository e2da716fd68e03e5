"""The contracts of cats.ops: schemas, torch.compile, out=, the choice of a backend, and every complaint."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from cats import ops
from cats.ops import dispatch, interface
from cats.ops.backends import reference

SHAPES: list[tuple[int, ...]] = [(3, 4), (5,), (), (2, 0), (6,)]
WEIGHTS = [0.5, 0.25, -1.0]
ADAMW: dict[str, Any] = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.01}


def make(requires_grad: bool = False) -> list[list[Tensor | None]]:
    """Three tasks; the second parameter is not task 1's, the last is nobody's; gradients may carry a graph or not."""
    generator = torch.Generator().manual_seed(0)
    grads: list[list[Tensor | None]] = [[torch.randn(s, generator=generator) for s in SHAPES] for _ in range(3)]
    grads[1][1] = None
    for row in grads:
        row[4] = None
    if requires_grad:
        grads[2] = [None if g is None else g.requires_grad_() for g in grads[2]]
    return grads


def state() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return tuple([torch.full(s, value) for s in SHAPES] for value in (1.0, 0.1, 0.2))  # type: ignore[return-value]


# torch.library and torch.compile


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


def test_shapes_are_known_without_data() -> None:
    grads = [[None if g is None else g.to("meta") for g in row] for row in make()]
    combined, dots, sqnorms = ops.combine_dots(grads, torch.empty(2, 3, device="meta"), groups=[0, 0, 1, 0, 0])
    assert [[None if t is None else tuple(t.shape) for t in row] for row in combined] == [[*SHAPES[:4], None]] * 2
    assert (dots.shape, sqnorms.shape, dots.dtype, dots.device.type) == ((2, 2, 3), (2, 3), torch.float64, "meta")
    assert ops.gram(grads).shape == (3, 3)


# Results


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
    assert out[0]._version > version  # autograd notices


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


# Complaints: one line each, naming task and parameter.


def grads_with(n: int, i: int, value: Any) -> Any:
    grads: Any = [[torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3)]]
    grads[n][i] = value
    return grads


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


GOOD = grads_with(0, 0, torch.ones(2))
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
        lambda: ops.combine_adamw_(GOOD[0], GOOD, [1.0, 1.0], *GOOD, **ADAMW | {"step": 0}),
        ValueError,
        "step is 0, but the first update is number 1",
    ),
    "lr": (
        lambda: ops.combine_adamw_(GOOD[0], GOOD, [1.0, 1.0], *GOOD, **ADAMW | {"lr": torch.ones(2)}),
        ValueError,
        "lr has shape (2,), but must have one element",
    ),
    "beta": (
        lambda: ops.combine_adamw_(GOOD[0], GOOD, [1.0, 1.0], *GOOD, **ADAMW | {"beta1": 1.0}),
        ValueError,
        "beta1 = 1.0, beta2 = 0.98: both must lie in [0, 1)",
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


# Backends


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an install without it, whatever this one has."""
    monkeypatch.setitem(dispatch.BACKENDS, "native", "cats.absent")


def test_backends_tell_why_not(no_native: None) -> None:
    found = ops.backends()
    assert list(found) == ["reference", "native", "triton", "cuda"]
    assert found["reference"] is None
    assert found["native"] == "this version of cats has no native backend (there is no module cats.absent)"


def test_a_missing_backend_is_an_error_that_says_why(no_native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "backend 'native' cannot be used here: this version of cats has no native backend"
    with pytest.raises(RuntimeError, match=message):
        ops.gram(GOOD, backend="native")
    monkeypatch.setenv("CATS_BACKEND", "native")
    ones = [[torch.ones(2), torch.ones(3)] for _ in range(3)]
    update = (ones[0], GOOD, [1.0, 1.0], ones[1], ones[2])
    for call in (
        lambda **named: ops.combine(GOOD, [1.0, 1.0], **named),
        lambda **named: ops.combine_dots(GOOD, [1.0, 1.0], **named),
        lambda **named: ops.dots(GOOD, GOOD[0], **named),
        lambda **named: ops.gram(GOOD, **named),
        lambda **named: ops.combine_adamw_(*update, **ADAMW, **named),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
        call(backend="reference")  # the argument comes before the environment


def test_a_backend_is_a_module_with_the_same_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("cats.elsewhere")
    monkeypatch.setitem(sys.modules, "cats.elsewhere", module)
    monkeypatch.setitem(dispatch.BACKENDS, "native", "cats.elsewhere")
    assert ops.backends()["native"] == (
        "this version of cats has no native backend"
        " (module cats.elsewhere has no combine, combine_dots, dots, gram, combine_adamw_)"
    )
    module.LIMITS = interface.Limits()  # type: ignore[attr-defined]
    module.split = lambda grads, others, groups, takes: ((grads, others, groups), [])  # type: ignore[attr-defined]
    for name in dispatch.OPERATORS:
        function = getattr(reference, name)
        setattr(module, name, lambda pieces, *rest, function=function: function(*pieces, *rest))
    assert ops.backends()["native"] is None
    assert ops.gram(GOOD, backend="native").tolist() == [[5.0, 5.0], [5.0, 5.0]]
    monkeypatch.setattr(module, "gram", lambda pieces: (torch.full((1, 2, 2), 7.0).double(),), raising=False)
    assert ops.gram(GOOD, backend="native").tolist() == [[7.0, 7.0], [7.0, 7.0]]
    monkeypatch.setenv("CATS_BACKEND", "native")
    assert ops.gram(GOOD).tolist() == [[7.0, 7.0], [7.0, 7.0]]
    monkeypatch.delenv("CATS_BACKEND")
    monkeypatch.setitem(dispatch.DEFAULTS, "cpu", ("native",))
    assert ops.gram(GOOD).tolist() == [[7.0, 7.0], [7.0, 7.0]]
    module.LIMITS = interface.Limits(devices=("cuda",))  # type: ignore[attr-defined]
    assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot be used for gradients on cpu: it works on cuda"):
        ops.gram(GOOD, backend="native")


def test_a_default_that_cannot_be_used_gives_way(no_native: None) -> None:
    assert dispatch.chosen("cpu") == "reference" == dispatch.chosen("meta")
    assert dispatch.choice("cpu").startswith("reference; not native: this version of cats has no native backend")
    assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]


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


def test_a_backend_gives_its_own_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "cats_unusable.py").write_text("raise ImportError('no CUDA device is visible')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", "cats_unusable")
    assert ops.backends()["cuda"] == "no CUDA device is visible"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot be used here: no CUDA device is visible"):
        ops.gram(GOOD, backend="cuda")
