"""Tensors that are not what they seem, in every tensor argument of every operator: right, or refused in one line."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from cats import ops
from cats.ops import dispatch, layout
from tests.ops.common import Backend

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of these tensors experimental

Change = Callable[[Tensor], Tensor]
ARGUMENTS = {
    "combine": ("grads", "weights", "out"),
    "combine_dots": ("grads", "weights", "out"),
    "dots": ("grads", "direction"),
    "gram": ("grads",),
    "combine_adamw_": (
        *("grads", "weights", "params", "exp_avgs", "exp_avg_sqs"),
        *("step", "lr", "found_inf", "grad_scale"),
    ),
    "graddrop": ("grads", "out"),
    "row_dots": ("x", "y", "rows"),
}
WRITTEN = ("out", "params", "exp_avgs", "exp_avg_sqs")
CASES = [(operator, name) for operator, names in ARGUMENTS.items() for name in names]


def arguments(operator: str, name: str = "", change: Change = lambda t: t) -> dict[str, Any]:
    """Two tasks, two parameters, all numbers small integers. One tensor of the argument `name` is changed."""
    all_names = ARGUMENTS[operator]
    row = [torch.arange(1.0, 5.0), torch.tensor([[3.0, -1.0], [2.0, 5.0]])]
    tensors: dict[str, Any] = {
        "grads": [[2 * t for t in row], [t - 4 for t in row]],
        "weights": torch.tensor([2.0, -3.0], dtype=torch.float64),
        **{other: [t.clone() for t in row] for other in ("direction", "out", "params", "exp_avgs", "exp_avg_sqs")},
        **{scalar: torch.tensor(value) for scalar, value in (("step", 2.0), ("lr", 0.5), ("found_inf", 0.0))},
        "grad_scale": torch.tensor(2.0),
        **{"x": row[1], "y": row[1] - 4, "rows": torch.tensor([1, 0])},
    }
    tensors["exp_avg_sqs"] = [t.square() for t in row]
    found = {other: tensors[other] for other in all_names}
    if name == "grads":
        found["grads"][1][0] = change(found["grads"][1][0])
    elif name and isinstance(found[name], list):
        found[name][0] = change(found[name][0])
    elif name:
        found[name] = change(found[name])
    if operator == "combine_adamw_":
        found |= {"beta1": 0.5, "beta2": 0.5, "eps": 1e-8, "weight_decay": 0.25}
    if operator == "graddrop":
        found["seed"] = 0
    if operator == "row_dots":
        found["tasks"] = 2
    return found


def run(operator: str, found: dict[str, Any], backend: str | None = None) -> list[Tensor]:
    """The results, and what is in the tensors that were written."""
    written = [t for name in WRITTEN for t in found.get(name, [])]
    result = getattr(ops, operator)(**found, backend=backend)
    numbers: list[Tensor] = []
    for part in result if isinstance(result, (list, tuple)) else [result]:
        numbers += part if isinstance(part, list) else [part]
    return [t.detach().clone() for t in numbers + written]


class Plain(Tensor):
    """A subclass that changes nothing."""


def inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


RIGHT: dict[str, Change] = {
    "negative bit": lambda t: torch._neg_view(-t),  # dense, unlike the next
    "imaginary part": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "subclass": lambda t: t.as_subclass(Plain),  # type: ignore[arg-type]
    "inference": inference,  # torch forbids to write into it
    "copy on write": torch._lazy_clone,
    "parameter": lambda t: torch.nn.Parameter(t),
    "end of its storage": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
}
IMPOSSIBLE = {**dict.fromkeys(WRITTEN, ("inference",)), "rows": ("imaginary part", "parameter")}


@pytest.fixture(params=["C++", "Python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the arguments: the compiled module, or Python where there is none."""
    if request.param == "Python":
        read_in_python(monkeypatch)


def read_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the compiled module."""
    monkeypatch.setattr(layout, "_reads_tensors", False)
    monkeypatch.setattr(layout, "_reads_matrices", False)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("operator", "name"), CASES, ids=lambda v: v)
def test_the_same_numbers_in_an_unusual_form(backend: Backend, operator: str, name: str) -> None:
    if backend.device.type != "cpu":
        pytest.skip("the forms are made on the CPU")
    backend.needs(operator)
    expected = run(operator, arguments(operator), backend.name)
    for kind, change in RIGHT.items():
        if kind in IMPOSSIBLE.get(name, ()):
            continue
        found = run(operator, arguments(operator, name, change), backend.name)
        for a, b in zip(found, expected, strict=True):
            # Integers: only AdamW rounds, and the reference may compute what the backend otherwise would.
            torch.testing.assert_close(
                a.as_subclass(Tensor).resolve_neg(),
                b,
                rtol=1e-6 if operator == "combine_adamw_" else 0,
                atol=0,
                msg=kind,
            )


READ = [case for case in CASES if case[1] not in (*WRITTEN, "step", "grad_scale")]  # those two must not be zero


@pytest.mark.parametrize(("operator", "name"), READ, ids=lambda v: v)
def test_zeros_without_memory_are_zeros(operator: str, name: str) -> None:
    expected = run(operator, arguments(operator, name, torch.zeros_like))
    lazy = arguments(operator, name, lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype))
    assert all(torch.equal(a, b) for a, b in zip(run(operator, lazy), expected, strict=True))


def cut(size: Callable[[Tensor], int], start: int = 0) -> Change:
    """A tensor that begins at element `start` of a storage of which `size` bytes are left."""

    def change(t: Tensor) -> Tensor:
        whole = torch.cat([t.new_zeros(start), t.flatten()])
        part = whole[start:].view(t.shape)
        whole.untyped_storage().resize_(size(part))
        return part

    return change


def of_vmap(t: Tensor) -> Tensor:
    kept: list[Tensor] = []
    torch.vmap(lambda x: (kept.append(x), x)[1])(torch.stack([t, t]))
    return kept[0]


class Wrapper(Tensor):
    """A subclass without memory, which no operator supports."""

    @staticmethod
    def __new__(cls, t: Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, t.shape, dtype=t.dtype, device=t.device)  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "cats" in str(function):
            raise NotImplementedError(f"Wrapper does not support {function}")
        return function(*args, **(kwargs or {}))


REFUSED: dict[str, Change] = {
    "fake": lambda t: FakeTensorMode().from_tensor(t),
    "freed": cut(lambda t: 0),
    "freed, not at its start": cut(lambda t: 0, start=3),
    "cut": cut(lambda t: t.nbytes - 1),
    "cut, not at its start": cut(lambda t: t.nbytes, start=1),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "compressed": lambda t: t.view(1, -1).to_sparse_csr(),
    "mkldnn": lambda t: t.float().flatten().to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor([t.flatten()]),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 1.0, 0, torch.qint8),
    "complex": lambda t: t + 0j,
    "batched": of_vmap,
    "wrapper": Wrapper,
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(("operator", "name"), CASES, ids=lambda v: v)
def test_what_has_no_numbers_is_refused_and_nothing_is_written(operator: str, name: str, kind: str) -> None:
    found, before = arguments(operator, name, REFUSED[kind]), arguments(operator)
    for backend in "native", "reference":
        with pytest.raises((TypeError, ValueError, RuntimeError, NotImplementedError)) as caught:
            run(operator, found, backend)
        assert str(caught.value) and "\n" not in str(caught.value)
        for written in WRITTEN:
            pairs = zip(found.get(written, []), before.get(written, []), strict=True)
            assert all(torch.equal(a, b) for i, (a, b) in enumerate(pairs) if (written, i) != (name, 0))


@pytest.mark.parametrize("operator", ARGUMENTS)
def test_without_the_compiled_reader_the_same_is_refused(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_python(monkeypatch)
    for name in ARGUMENTS[operator]:
        for kind, change in REFUSED.items():
            with pytest.raises((TypeError, ValueError, RuntimeError, NotImplementedError)):
                run(operator, arguments(operator, name, change))
                pytest.fail(kind)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("operator", "name"), [case for case in CASES if case[1] in WRITTEN], ids=lambda v: v)
def test_what_cannot_be_written_is_refused(operator: str, name: str) -> None:
    zero = arguments(operator, name, lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype))
    with pytest.raises(ValueError, match=rf"{name}\[0\]: a tensor of zeros without memory"):
        run(operator, zero)
    for view in (lambda t: t[:1].expand(4), lambda t: torch.ones(4).as_strided((2, 2), (1, 1))):
        found = arguments(operator, name, view)
        with pytest.raises(ValueError, match=rf"{name}\[0\]: (an expanded tensor|shape)"):
            run(operator, found)
    found = arguments(operator)
    found["grads"][0][0] = found[name][0]
    with pytest.raises(ValueError, match=rf"{name}\[0\]: shares memory with task 0, parameter 0"):
        run(operator, found)
    found = arguments(operator)
    found[name][0] = found[name][1].view(4)
    with pytest.raises(ValueError, match="shares memory with"):
        run(operator, found)
    with torch.device("cpu"), pytest.raises(ValueError, match="shares memory with"):  # a mode sees every call
        run(operator, found)


@pytest.mark.usefixtures("reader")
def test_memory_between_the_elements_is_not_shared() -> None:
    b = torch.arange(20.0)
    for gradient, out in ((b[::2], b[1::2]), (b.view(5, 4)[:, 0], b.view(5, 4)[:, 1]), (b[:0], b[:0])):
        expected = 2 * gradient.clone()
        (found,) = ops.combine([[gradient]], [2.0], out=[out])
        assert torch.equal(found, expected)
    b = torch.arange(100.0)  # an expanded gradient of the elements 0, 5, 10; written are 1, 6, 11, ...
    expanded = b.as_strided((4, 3), (0, 5))
    (found,) = ops.combine([[expanded]], [2.0], out=[b.as_strided((4, 3), (15, 5), 1)])
    assert torch.equal(found, 2 * torch.tensor([0.0, 5.0, 10.0]).expand(4, 3))


@pytest.mark.usefixtures("reader")
def test_inside_a_transform_of_torch_func() -> None:
    """Tensors that the transform does not see: the operators are constants to it."""
    grads = [[torch.arange(4.0)], [torch.ones(4)]]
    expected = torch.arange(4.0) + 2
    x = torch.ones(4)
    assert torch.equal(torch.func.grad(lambda x: (x * ops.combine(grads, [1.0, 2.0])[0]).sum())(x), expected)
    assert torch.equal(torch.func.vmap(lambda x: x * ops.gram(grads)[0, 0])(x), torch.full((4,), 14.0))
    assert torch.func.jvp(lambda x: x.sum() * ops.dots(grads, [x.new_ones(4)])[0], (x,), (x,))[1] == 24


@pytest.mark.parametrize("operator", ARGUMENTS)
def test_all_fake_tensors_have_fake_results(operator: str) -> None:
    expected = run(operator, arguments(operator))
    with FakeTensorMode():
        found = run(operator, arguments(operator))
    assert all(isinstance(t, FakeTensor) for t in found)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]


def test_no_gradient_at_all_in_fake_mode() -> None:
    with FakeTensorMode():
        combined, dots, sqnorms = ops.combine_dots([[None], [None]], [1.0, 2.0])
    assert combined == [None] and dots.shape == sqnorms.shape == (2,)


@pytest.mark.parametrize("operator", [operator for operator in ARGUMENTS if "grads" in ARGUMENTS[operator]])
def test_the_operator_holds_its_tensors(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another thread may change the caller's lists at any time. Here it does so right before the kernel runs.
    found, expected = arguments(operator), run(operator, arguments(operator))
    lists = [*found["grads"], *(found[name] for name in (*WRITTEN, "direction") if name in found)]
    tensors = [weakref.ref(t) for row in lists for t in row]
    original = getattr(dispatch, operator)

    def replaced(**options: Any) -> Any:
        for row in lists:
            row.clear()
        found["grads"].clear()
        gc.collect()
        assert all(tensor() is not None for tensor in tensors)
        return original(**options)

    monkeypatch.setattr(dispatch, operator, replaced)
    assert all(torch.equal(a, b) for a, b in zip(run(operator, found), expected, strict=True))


def test_all_threads_take_denormal_numbers_for_zero_where_the_caller_does() -> None:
    small = torch.full((1 << 19,), 1e-39)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot do that")
    try:
        for _ in range(5):
            combined, *_ = ops.combine_dots([[small], [small]], [0.5, 0.5])
            assert not combined[0].view(torch.int32).any()  # a comparison with 0.0 would flush, too
        torch.set_flush_denormal(False)
        combined, *_ = ops.combine_dots([[small], [small]], [0.5, 0.5])
        assert combined[0].view(torch.int32).all()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_threads_and_a_forked_process_get_the_same_numbers() -> None:
    size, calls = 200_000, 5  # large enough for several threads
    grads = [[torch.arange(size) % (5 + n) - 2.0] for n in range(3)]
    states = [[[torch.ones(size)] for _ in range(3)] for _ in range(calls)]
    outs = [[torch.empty(size)] for _ in range(calls)]

    def results(call: int) -> list[list[float]]:
        options = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.0}
        combined, dots, sqnorms = ops.combine_dots(grads, [1.0, 2.0, -1.0], out=outs[call])
        params, *moments = states[call]
        ops.combine_adamw_(params, grads, [1.0, 2.0, -1.0], *moments, **options)  # type: ignore[arg-type]
        found = [combined[0], dots, sqnorms, ops.gram(grads), ops.dots(grads, combined), params[0], moments[1][0]]
        found.append(ops.row_dots(grads[0][0].view(-1, 8), grads[1][0].view(-1, 8), torch.arange(size // 8) % 3, 3))
        return [t.flatten()[:2000].tolist() for t in found]

    expected = results(0)
    found: list[list[list[float]]] = []
    threads = [
        threading.Thread(target=lambda call=call: found.append(results(call)), daemon=True) for call in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 3
    if ops.backends()["native"] is not None:
        return  # the threads of torch's own operators do not survive a fork, and a child that uses them waits forever
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(results(4)), daemon=True)
    child.start()  # it has none of the threads that its parent has used
    assert receiver.poll(60) and receiver.recv() == expected
    child.join(60)
    assert child.exitcode == 0
