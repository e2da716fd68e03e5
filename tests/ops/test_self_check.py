"""A default backend is compared with float64 at its first use: right ones pass, wrong ones are found and replaced."""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from cats import ops
from cats.ops import check_all, dispatch, self_check
from cats.ops.backends import reference
from tests.ops.common import FLOATS, Backend, mixed_weights, reasons
from tests.ops.small import GOOD

CPU = torch.device("cpu")


def dtypes_of(operator: str, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return check_all.Check("native", "cpu", operator, str(dtype).removeprefix("torch."), 2, True).dtypes


def kernel(operator: str, dtype: torch.dtype = torch.float32, tasks: int = 3) -> self_check.Kernel:
    return self_check.Kernel("native", operator, CPU, dtypes_of(operator, dtype), True, tasks)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(self_check, "_found", {})
    monkeypatch.setattr(dispatch, "_modules", {})
    monkeypatch.delenv("CATS_SELF_CHECK", raising=False)
    monkeypatch.delenv("CATS_BACKEND", raising=False)


@pytest.fixture
def native() -> ModuleType:
    if reason := reasons()["native"]:
        pytest.skip(reason)
    return importlib.import_module("cats.ops.backends.native")


def operators_of(module: ModuleType) -> list[str]:
    """A backend may lack a new operator."""
    return [name for name in dispatch.OPERATORS if hasattr(module, name)]


# Right and wrong kernels


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_right_kernels_pass(native: ModuleType, dtype: torch.dtype) -> None:
    for operator, tasks in itertools.product(operators_of(native), (1, 2, 8, 33)):
        assert self_check.check(native, kernel(operator, dtype, tasks)) is None, operator
    several = kernel("combine_dots", dtype)._replace(dtypes=(dtype,) * 4)
    assert self_check.check(native, several) is None


@pytest.mark.parametrize("aligned", [True, False])
def test_right_kernels_pass_on_every_backend(backend: Backend, aligned: bool) -> None:
    if backend.name == "reference":
        pytest.skip("the reference is not checked")
    module = dispatch._load(backend.name)
    assert not isinstance(module, str)
    cases = [("combine_dots", torch.bfloat16, 3), ("gram", torch.float32, 3), ("dots", torch.float32, 3)]
    cases += [("row_dots", torch.bfloat16, 3), ("graddrop", torch.float32, 3)]
    cases += [("combine_adamw_", torch.float32, 2), ("gram", torch.bfloat16, 12)]
    for operator, dtype, tasks in cases if aligned else cases[:5]:
        if operator not in operators_of(module):
            continue
        each = kernel(operator, dtype, tasks)._replace(device=backend.device, aligned=aligned)
        assert self_check.check(module, each) is None, operator


def wrong_kernels(native: ModuleType) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """What is wrong, in which operator, and a function (pieces, *arguments) with this mistake."""

    def changed(operator: str, change: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda pieces, *arguments: change(getattr(native, operator)(pieces, *arguments))

    yield "nothing is computed", "combine", lambda pieces, weights: None
    yield "weights are rounded", "combine", lambda pieces, w: native.combine(pieces, w.bfloat16().double())
    yield "a task is left out", "combine_dots", lambda pieces, w: native.combine_dots(pieces, w * (w != w[0, 1]))
    yield "two tasks are swapped", "combine_dots", changed("combine_dots", lambda s: (s[0], s[1].flip(1)))
    yield "groups are swapped", "combine_dots", changed("combine_dots", lambda s: (s[0].flip(0), s[1]))
    yield "not a number", "dots", changed("dots", lambda s: (s[0] * torch.nan,))
    yield "TF32", "gram", changed("gram", lambda s: (s[0] * (1 + 2.0**-11),))
    yield "a wrong shape", "gram", changed("gram", lambda s: (s[0][:1],))
    yield "one number is lost", "gram", changed("gram", lambda s: (s[0] * (torch.arange(9) != 5).view(3, 3),))
    yield "another step", "combine_adamw_", lambda p, w, s: native.combine_adamw_(p, w, s._replace(step=s.step + 1))
    yield "another beta", "combine_adamw_", lambda p, w, s: native.combine_adamw_(p, w, s._replace(beta2=0.99))
    for ignored in ("found_inf", "grad_scale"):

        def ignores(p: Any, w: Any, settings: Any, name: str = ignored) -> Any:
            return native.combine_adamw_(p, w, settings._replace(**{name: None}))

        yield f"{ignored} is ignored", "combine_adamw_", ignores
    yield "another seed", "graddrop", lambda p, w, d: native.graddrop(p, w, d._replace(seed=d.seed + 1))
    yield "another position", "graddrop", lambda p, w, d: native.graddrop(p, w, d._replace(positions=(0, 0, 0)))
    yield "leaks are swapped", "graddrop", lambda p, w, d: native.graddrop(p, w.flip(1).contiguous(), d)
    yield (
        "the last row is lost",
        "row_dots",
        lambda p: native.row_dots(p._replace(rows=p.rows.clone().index_fill_(0, torch.tensor([-1]), -1))),
    )
    yield "rows without a task count", "row_dots", lambda p: native.row_dots(p._replace(rows=p.rows.clamp(min=0)))
    yield "two tasks are swapped", "row_dots", changed("row_dots", lambda s: s.flip(0))
    yield "an error", "gram", lambda pieces: 1 / 0


def test_wrong_kernels_are_found(native: ModuleType) -> None:
    for what, operator, function in wrong_kernels(native):
        module = ModuleType("wrong")
        module.LIMITS, module.split = native.LIMITS, native.split  # type: ignore[attr-defined]
        setattr(module, operator, function)
        reason = self_check.check(module, kernel(operator))
        assert reason is not None and "\n" not in reason, what


def test_an_operator_without_a_comparison_does_not_pass(native: ModuleType) -> None:
    module = ModuleType("new")
    module.LIMITS, module.split = native.LIMITS, native.split  # type: ignore[attr-defined]
    module.new = lambda pieces: ()  # type: ignore[attr-defined]
    reason = self_check.check(module, kernel("new"))
    assert reason == "NotImplementedError: cats/ops/self_check.py does not know what new must compute"


# What follows


@pytest.fixture
def wrong(fresh: None, native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The default backend on the CPU: its Gram matrices are wrong, everything else is right."""
    module = ModuleType("cats.wrong")
    for name in ("LIMITS", "split", *operators_of(native)):
        setattr(module, name, getattr(native, name))
    module.gram = lambda pieces: (native.gram(pieces)[0] + 1,)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cats.wrong", module)
    monkeypatch.setitem(dispatch.BACKENDS, "native", "cats.wrong")
    return module


def test_a_wrong_default_is_replaced_with_one_warning(wrong: ModuleType) -> None:
    assert dispatch.choices(CPU) == "native, reference"
    with pytest.warns(RuntimeWarning, match=r"'native' failed its check and is not used for gram of float32") as seen:
        assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]
        assert ops.combine_dots(GOOD, [1.0, 1.0])[2].tolist() == [5.0, 5.0]  # the other operators stay
    assert [(k.operator, k.tasks) for k in self_check.failures()] == [("gram", 2)]
    assert len(self_check._found) == 2
    assert dispatch.choices(CPU) == "native, reference; not native for gram of torch.float32, 2 tasks"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("Triton Error: out of memory")]
)
def test_short_memory_is_not_a_failed_check(
    wrong: ModuleType, native: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def gram(pieces: Any) -> Any:
        raise error

    monkeypatch.setattr(wrong, "gram", gram)
    with pytest.raises(type(error)):
        ops.gram(GOOD)
    assert not self_check._found
    monkeypatch.setattr(wrong, "gram", native.gram)
    assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]  # checked again, and right
    assert set(self_check._found.values()) == {None}


def test_an_earlier_error_on_the_device_is_not_a_failed_check(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    pieces = types.SimpleNamespace(device=torch.device("cuda", 0), kinds=[((torch.float32,), True)])
    with pytest.raises(RuntimeError, match="illegal memory access"):
        self_check.passes(ModuleType("never called"), "cuda", "gram", 3, pieces)
    assert not self_check._found


def test_a_backend_asked_for_is_neither_checked_nor_replaced(
    wrong: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ops.gram(GOOD, backend="native").tolist() == [[6.0, 6.0], [6.0, 6.0]]
    monkeypatch.setenv("CATS_BACKEND", "native")
    assert ops.gram(GOOD).tolist() == [[6.0, 6.0], [6.0, 6.0]]
    assert not self_check._found and dispatch.choices(CPU) == "native for all"


def test_checks_can_be_switched_off(wrong: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATS_SELF_CHECK", "0")
    assert ops.gram(GOOD).tolist() == [[6.0, 6.0], [6.0, 6.0]]
    monkeypatch.setenv("CATS_SELF_CHECK", "off")
    with pytest.raises(ValueError, match="CATS_SELF_CHECK is 'off', but must be 0"):
        ops.gram(GOOD)


def test_the_next_default_is_tried_before_the_reference(wrong: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    second = ModuleType("cats.second")
    calls = []
    for name in ("LIMITS", "split"):
        setattr(second, name, getattr(wrong, name))
    native = importlib.import_module("cats.ops.backends.native")
    second.gram = lambda pieces: calls.append(1) or native.gram(pieces)  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "cats.second", second)
    monkeypatch.setitem(dispatch.BACKENDS, "triton", "cats.second")
    monkeypatch.setitem(dispatch.DEFAULTS, "cpu", ("native", "triton"))
    with pytest.warns(RuntimeWarning, match="'native' failed"):
        assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert len(calls) == 2  # the check and the call


def test_one_check_for_all_threads(fresh: None, native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    check = self_check.check
    monkeypatch.setattr(self_check, "check", lambda *a: checked.append(a[1]) or check(*a))  # type: ignore[func-returns-value]
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(ops.gram(GOOD).tolist()), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [[[5.0, 5.0], [5.0, 5.0]]] * 8 and len(checked) == 1


def test_the_callers_modes_do_not_matter(fresh: None, native: ModuleType) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.inference_mode():
            assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]
        with torch.device("meta"), torch.autocast("cpu"):
            assert ops.dots(GOOD, GOOD[0]).tolist() == [5.0, 5.0]
    torch.set_default_dtype(torch.float64)
    try:
        assert self_check.check(native, kernel("combine_dots")) is None
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(reason is None for reason in self_check._found.values()) and len(self_check._found) == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_checked_while_a_graph_is_captured(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("never called")
    pieces = types.SimpleNamespace(device=torch.device("cuda", 0), kinds=[((torch.float32,), True)])
    each = self_check.Kernel("cuda", "gram", pieces.device, (torch.float32,), True, 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.warns(RuntimeWarning, match="call the operator once before the capture"):
        assert not self_check.passes(module, "cuda", "gram", 3, pieces)
    assert not self_check._found  # a later call checks it
    self_check._found[each] = None
    assert self_check.passes(module, "cuda", "gram", 3, pieces)


def test_the_cuda_kernels_are_a_default_that_proves_itself(
    fresh: None, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend("cuda", "cpu", interpreted=True)
    monkeypatch.setitem(dispatch.DEFAULTS, "cpu", ("cuda",))
    grads = backend.integers(3, [(5,), (300,)])
    expected = reference.gram(grads, [], [0, 0])[0][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ops.gram(grads), expected)
        ops.combine_dots(grads, mixed_weights(3))
    assert {k.backend for k in self_check._found} == {"cuda"} and set(self_check._found.values()) == {None}


def test_every_number_of_tasks_is_checked(
    wrong: ModuleType, native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if there were a kernel for each, of which one is wrong.
    def gram(pieces: Any) -> Any:
        (found,) = native.gram(pieces)
        return (found + (found.shape[-1] == 3),)

    monkeypatch.setattr(wrong, "gram", gram)
    grads = [[torch.ones(2)]] * 4
    assert ops.gram(grads).tolist() == [[2.0] * 4] * 4
    with pytest.warns(RuntimeWarning, match="gram of float32, 3 tasks"):
        assert ops.gram(grads[:3]).tolist() == [[2.0] * 3] * 3


@pytest.mark.gpu
def test_the_defaults_on_a_gpu_are_right(fresh: None) -> None:
    backend = Backend("", "cuda", interpreted=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tasks in (2, 8, 33):
            grads = backend.normal(tasks, [(1000,), (7,)])
            ops.gram(grads)
            ops.combine_dots(grads, mixed_weights(tasks))
    assert self_check._found and set(self_check._found.values()) == {None}
