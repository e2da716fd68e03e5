"""The choice of a backend, and what the reference computes instead of it."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from cats import ops
from cats.ops import dispatch, layout
from cats.ops.backends import reference
from cats.ops.interface import Limits
from tests.ops import common
from tests.ops.common import Backend, reasons
from tests.ops.small import ADAMW, GOOD


def test_no_backend_is_missing_by_mistake() -> None:
    # Otherwise all of its tests would be skipped, and nothing would fail.
    if importlib.util.find_spec("triton"):
        reason = reasons()["triton"]
        assert reason is None or "is too old: 3.6" in reason  # torch 2.6 brings such a one
    if shutil.which("c++"):
        assert reasons()["native"] is None


def test_no_operator_is_missing_by_mistake(backend: Backend) -> None:
    # Otherwise the reference would compute it, and nobody would notice.
    module = dispatch.load(backend.name)
    lacking = {name for name in dispatch.OPERATORS if not hasattr(module, name)}
    assert lacking == set(common.LACKS.get(backend.name, ()))


def test_an_operator_that_a_backend_does_not_have_yet_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "LACKS", {"reference": ("gram",)})
    backend = Backend("reference", "cpu", interpreted=False)
    assert backend.dots(GOOD, GOOD[0]).tolist() == [5.0, 5.0]
    with pytest.raises(pytest.skip.Exception, match="backend reference has no gram yet"):
        backend.gram(GOOD)


@pytest.mark.gpu
def test_no_gpu_backend_is_missing_by_mistake() -> None:
    assert reasons()["triton"] is None
    if shutil.which("nvcc"):
        assert reasons()["cuda"] is None


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installation without the compiled module."""
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
    monkeypatch.setenv("CATS_SELF_CHECK", "0")
    module = ModuleType("cats.elsewhere")
    monkeypatch.setitem(sys.modules, "cats.elsewhere", module)
    monkeypatch.setitem(dispatch.BACKENDS, "native", "cats.elsewhere")
    assert ops.backends()["native"] == (
        f"this version of cats has no native backend (module cats.elsewhere has no {', '.join(dispatch.OPERATORS)})"
    )
    monkeypatch.setattr(dispatch, "_modules", {})  # as in a new process
    module.LIMITS = Limits()  # type: ignore[attr-defined]
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
    module.LIMITS = Limits(devices=("cuda",))  # type: ignore[attr-defined]
    assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]
    with pytest.raises(
        RuntimeError, match=r"backend 'native' cannot be used for gradients on cpu: it works only on cuda"
    ):
        ops.gram(GOOD, backend="native")


class Recorder(ModuleType):
    """A backend that computes with the reference, and records the parameters that it was given."""

    def __init__(self, limits: Limits, operators: tuple[str, ...] = dispatch.OPERATORS) -> None:
        super().__init__("cats.recorder")
        self.LIMITS = limits
        self.pieces: list[Any] = []
        for name in operators:
            setattr(self, name, functools.partial(self.compute, getattr(reference, name)))

    def compute(self, function: Any, pieces: Any, *arguments: Any) -> Any:
        return function(*pieces, *arguments)

    def split(self, grads: Any, others: Any, groups: Any, takes: Any) -> Any:
        flat = layout.flatten(grads, others)
        flat = flat if takes is None else flat.keep(takes, len(grads) + len(others))
        self.pieces.append(flat.params)
        dense = [layout.select(rows, flat.params) for rows in (grads, others)]
        return (*dense, [groups[i] for i in flat.params]), flat.fallback


def use(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this module the backend "native", which is the default on the CPU."""
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.setitem(dispatch.BACKENDS, "native", backend.__name__)
    monkeypatch.setattr(dispatch, "_modules", {})
    monkeypatch.setenv("CATS_SELF_CHECK", "0")


def test_an_operator_that_a_backend_lacks_falls_back_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Recorder(Limits(), ("combine", "combine_dots", "dots", "combine_adamw_"))
    use(lacking, monkeypatch)
    assert ops.backends()["native"] is None and dispatch.explain_default("cpu") == "native"
    assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]] and not lacking.pieces
    assert ops.dots(GOOD, GOOD[0]).tolist() == [5.0, 5.0] and lacking.pieces == [[0, 1]]
    with pytest.raises(RuntimeError, match="backend 'native' cannot be used for gradients on cpu: it has no gram"):
        ops.gram(GOOD, backend="native")


def test_a_backend_gets_the_dense_parameters_and_the_reference_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(Limits())
    use(recorder, monkeypatch)
    grads = [[torch.ones(2), torch.ones(1).expand(3), None], [torch.ones(2), torch.ones(3), torch.ones(4)]]
    combined, dots, sqnorms = ops.combine_dots(grads, [1.0, 2.0], groups=[0, 1, 1])
    assert recorder.pieces == [[0, 2]]
    assert [t.tolist() for t in combined] == [[3.0] * 2, [3.0] * 3, [2.0] * 4]
    assert sqnorms.tolist() == [[2.0, 2.0], [3.0, 7.0]] and dots.tolist() == [[6.0, 6.0], [9.0, 17.0]]
    version = combined[1]._version
    ops.combine(grads, [1.0, 2.0], out=combined)
    assert combined[0]._version > 0 and combined[1]._version > version  # autograd notices both


def test_results_have_the_strides_of_dense_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(Limits())
    use(recorder, monkeypatch)
    last = torch.arange(48.0).view(2, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    turned, gaps, expanded = torch.arange(6.0).view(2, 3).T, torch.ones(3, 8)[:, ::2], torch.ones(1, 3).expand(4, 3)
    given = [last, turned, gaps, expanded]
    combined, *_ = ops.combine_dots([given, [2 * t for t in given]], [1.0, 2.0])
    assert recorder.pieces == [[0, 1]]  # the others have no dense gradients
    assert [t.stride() for t in combined] == [last.stride(), turned.stride(), (4, 1), (3, 1)]
    assert all(torch.equal(t, 5 * g) for t, g in zip(combined, given, strict=True))
    fake = ops.combine([[t.to("meta") for t in given]], [1.0])
    assert [t.stride() for t in fake[:2]] == [last.stride(), turned.stride()]
    ops.combine([given], [1.0], out=combined)
    assert all(torch.equal(t, g) for t, g in zip(combined, given, strict=True))


def test_limits_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    short, wide = torch.ones(2, dtype=torch.bfloat16), torch.ones(3, dtype=torch.float64)
    limits = Limits(
        tasks=3,
        combinations=2,
        gram_tasks={torch.float64: 1},
        directions={torch.bfloat16: (torch.bfloat16,), torch.float64: (torch.float64, torch.float32)},
    )
    recorder = Recorder(limits)
    use(recorder, monkeypatch)
    grads = [[short, wide]] * 2
    # Gram matrices of more tasks than this dtype allows, and directions of other dtypes, are the reference's.
    assert ops.gram(grads).tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert ops.gram(grads[:1]).tolist() == [[5.0]]
    assert ops.dots(grads, [short.float(), wide.float()]).tolist() == [5.0, 5.0]
    assert recorder.pieces == [[0], [0, 1], [1]]
    # More combinations than the backend computes at once take several calls.
    recorder.pieces.clear()
    weights = torch.arange(6.0).view(3, 2)
    combined, dots, _ = ops.combine_dots(grads, weights)
    assert [row[0].tolist() for row in combined] == [[1.0] * 2, [5.0] * 2, [9.0] * 2]
    assert dots.tolist() == [[5.0] * 2, [25.0] * 2, [45.0] * 2]
    assert recorder.pieces == [[0, 1], [0, 1]]
    # More tasks than it takes: it is not called at all.
    recorder.pieces.clear()
    assert ops.gram([[short, wide]] * 4).tolist() == [[5.0] * 4] * 4 and not recorder.pieces


def test_a_default_that_cannot_be_used_gives_way(no_native: None) -> None:
    assert dispatch.explain_default("meta") == "reference"
    assert dispatch.explain_default("cpu").startswith(
        "reference; not native: this version of cats has no native backend"
    )
    assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_what_a_gpu_lacks_counts_where_the_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Recorder(Limits(devices=("cuda",)))
    module.lacks = lambda device: "it is too old" if device.index == 0 else None  # type: ignore[attr-defined]
    use(module, monkeypatch)
    monkeypatch.setitem(dispatch.DEFAULTS, "cuda", ("native",))
    assert dispatch.choices(torch.device("cuda", 0)) == "reference"
    assert dispatch.choices(torch.device("cuda", 1)) == "native, reference"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert dispatch.explain_default("cuda") == "native"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert dispatch.explain_default("cuda") == "reference; not native: it is too old"


def test_without_any_gradient_a_backend_for_another_device_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # No gradient is on any device, so it is not known where the others will be.
    module = Recorder(Limits(devices=("cuda",)))
    use(module, monkeypatch)
    nothing: list[list[Any]] = [[None, None]] * 2
    ones = [[torch.ones(2), torch.ones(3)] for _ in range(3)]

    def calls(**named: Any) -> list[Any]:
        return [
            ops.combine(nothing, [1.0, 1.0], **named),
            *ops.combine_dots(nothing, [1.0, 1.0], **named),
            ops.dots(nothing, ones[0], **named),
            ops.gram(nothing, **named),
            *ops.combine_adamw_(ones[0], nothing, [1.0, 1.0], *ones[1:], **ADAMW, **named),
            ops.graddrop(nothing, seed=0, **named),
        ]

    expected = str(calls(backend="reference"))
    assert str(calls(backend="native")) == expected and not module.pieces
    monkeypatch.setenv("CATS_BACKEND", "native")
    assert str(calls()) == expected and all(t.eq(1).all() for row in ones for t in row)
    monkeypatch.setenv("CATS_BACKEND", "nativ")
    with pytest.raises(ValueError, match="there is no backend 'nativ'"):
        calls()
    for call in (ops.gram, functools.partial(ops.dots, direction=ones[0]), functools.partial(ops.graddrop, seed=0)):
        with pytest.raises(ValueError, match="there is no backend 'cudo'"):
            call(nothing, backend="cudo")
    lacking = Recorder(Limits(devices=("cuda",)), ("combine",))
    use(lacking, monkeypatch)
    with pytest.raises(RuntimeError, match=r"^backend 'native' cannot be used: it has no gram$"):
        ops.gram(nothing, backend="native")


@pytest.mark.parametrize("asked", ["argument", "environment"])
def test_graddrop_refuses_an_unknown_backend_where_the_reference_computes(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transposed = [[torch.ones(3, 2).mT]] * 2
    named: dict[str, Any] = {"backend": "nativ"} if asked == "argument" else {}
    monkeypatch.setenv("CATS_BACKEND", "nativ")
    with pytest.raises(ValueError, match="there is no backend 'nativ'"):
        ops.graddrop(transposed, seed=0, **named)


def test_a_backend_that_cannot_be_imported_is_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    log = tmp_path / "log"
    code = f"open({str(log)!r}, 'a').write('x')\nraise ImportError('not here')\n"
    (tmp_path / "cats_tried.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(dispatch, "_modules", {})
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", "cats_tried")
    monkeypatch.setitem(dispatch.DEFAULTS, "cpu", ("cuda",))
    for _ in range(3):
        assert ops.gram(GOOD).tolist() == [[5.0, 5.0], [5.0, 5.0]]
        assert ops.backends()["cuda"] == "not here"
    assert log.read_text() == "x"


def test_a_backend_gives_its_own_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "cats_unusable.py").write_text("raise ImportError('no CUDA device is visible')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", "cats_unusable")
    assert ops.backends()["cuda"] == "no CUDA device is visible"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot be used here: no CUDA device is visible"):
        ops.gram(GOOD, backend="cuda")


def test_select_and_add_statistics() -> None:
    a, b = torch.ones(2), torch.ones(3)
    assert layout.select([[a, None, b], [b, a, None]], [2, 0]) == [[b, a], [None, b]]
    totals = torch.ones(3, 2), torch.zeros(3, 1, 2)
    dispatch._add(totals, (torch.tensor([[1.0, 2.0]]), torch.ones(2, 1, 2)))
    assert totals[0].tolist() == [[2.0, 3.0], [1.0, 1.0], [1.0, 1.0]]
    assert totals[1].tolist() == [[[1.0, 1.0]], [[1.0, 1.0]], [[0.0, 0.0]]]
