"""From lists of tensors to addresses: they cover all of the memory, every element once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cats import ops
from cats.ops import layout

Flatten = Callable[..., layout.Flat]


@pytest.fixture(params=["compiled", "python"])
def flatten(request: pytest.FixtureRequest) -> Flatten:
    if request.param == "python":
        return lambda grads, others=(): layout._flatten(grads, others)
    if not layout._reads_tensors:
        pytest.skip("no compiled module, or this torch has no DLPack exchange API")
    return layout.flatten


def address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def test_flat_parameters_become_addresses(flatten: Flatten) -> None:
    grads = [[torch.ones(3, 4), torch.ones(()), torch.ones(5).half()] for _ in range(2)]
    others = [[torch.ones(3, 4).double(), torch.ones(()), torch.ones(5)]]
    flat = flatten(grads, others)
    assert (flat.params, flat.numels, flat.fallback) == ([0, 1, 2], [12, 1, 5], [])
    wide, half = (torch.float32, torch.float32), (torch.float16, torch.float32)
    assert flat.dtypes == [(torch.float32, torch.float64), wide, half]
    columns = zip(*grads, *others, strict=True)
    assert flat.pointers.tolist() == [t.data_ptr() for column in columns for t in column]
    assert flat.by_dtypes() == {(torch.float32, torch.float64): [0], wide: [1], half: [2]}


def test_what_has_nothing_to_do_is_in_neither_part(flatten: Flatten) -> None:
    a, b = torch.ones(2), torch.ones(3)
    grads = [[a, None, torch.ones(0), b, None], [None, None, torch.ones(0), b, b]]
    flat = flatten(grads, [[a, None, torch.ones(0), None, b]])
    assert (flat.params, flat.numels, flat.fallback) == ([0, 4], [2, 3], [])
    assert flat.pointers.tolist() == [address(a), 0, address(a), 0, address(b), address(b)]
    nothing = flatten([[None, torch.ones(0)]] * 2)
    assert nothing.params == nothing.fallback == nothing.pointers.tolist() == [] and nothing.by_dtypes() == {}


@pytest.mark.parametrize("keys", ["text", 0], ids=["not a number", "no negative bit"])
def test_another_torch_is_read_by_its_methods(monkeypatch: pytest.MonkeyPatch, keys: Any) -> None:
    """If torch's objects are not as csrc/fields.cpp expects, tensors are still read, and right."""
    if not layout._reads_tensors:
        pytest.skip("no compiled module, or this torch has no DLPack exchange API")
    t = torch.arange(1.0, 6.0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch._C, "_dispatch_keys", lambda tensor: SimpleNamespace(raw_repr=lambda: keys))
            assert layout._native.use_torch(torch)
        grads = [[t], [torch._neg_view(t)]]
        assert ops.gram(grads).tolist() == [[55.0, -55.0], [-55.0, 55.0]]
        assert ops.combine(grads, [1.0, 3.0])[0].tolist() == (-2 * t).tolist()
    finally:
        layout._native.use_torch(torch)


BASE = torch.arange(120.0).view(4, 5, 6)
# Two tensors of one shape, and whether both are one dense layout.
PAIRS: dict[str, tuple[Tensor, Tensor, bool]] = {
    "row-major": (BASE, BASE.clone(), True),
    "column-major": (BASE.permute(2, 1, 0), BASE.clone().permute(2, 1, 0), True),
    "another permutation": (BASE.permute(1, 2, 0), BASE.clone().permute(1, 2, 0), True),
    "disagreeing": (BASE.view(4, 30).t(), BASE.view(30, 4), False),
    "disagreeing permutations": (BASE.permute(2, 1, 0), torch.ones(5, 6, 4).permute(1, 0, 2), False),
    "every second": (BASE.flatten()[::2], BASE.flatten()[::2], False),
    "a gap between rows": (BASE[..., :3], BASE[..., :3], False),
    "the start of a gap": (BASE[:1, :, :3], BASE[:1, :, :3], False),
    "one with gaps": (BASE[:, 0], BASE.flatten()[:24].view(4, 6), False),
    "expanded": (BASE[0, 0].expand(3, 6), BASE[0, 0].expand(3, 6), False),
    "all of one element": (torch.ones(1).expand(7), torch.ones(1).expand(7), False),
    "overlapping": (BASE.as_strided((3, 3), (1, 1)), BASE.as_strided((3, 3), (1, 1)), False),
    "overlapping rows": (BASE.as_strided((3, 3), (2, 1)), BASE.as_strided((3, 3), (2, 1)), False),
    "a part": (BASE[1:3], BASE.clone()[1:3], True),
    "one row with a stride of its own": (BASE.as_strided((1, 6), (99, 1)), BASE[0, :1], True),
    "one column of a matrix": (BASE.view(30, 4)[:, :1], BASE.view(30, 4)[:, 1:2], False),
    "a column that is a row": (BASE.flatten()[:9].view(9, 1), BASE.flatten()[:9].view(1, 9).t(), True),
}


@pytest.mark.parametrize(("first", "second", "dense"), PAIRS.values(), ids=list(PAIRS))
def test_one_dense_layout_or_odd(flatten: Flatten, first: Tensor, second: Tensor, dense: bool) -> None:
    for grads, others in ([[first], [second]], ()), ([[second], [first]], ()), ([[first]], [[second]]):
        rows = [[[torch.ones(2), *row, torch.ones(3)] for row in part] for part in (grads, others)]
        flat = flatten(*rows)
        assert (flat.params, flat.fallback) == (([0, 1, 2], []) if dense else ([0, 2], [1]))
        assert len(flat.pointers) == len(flat.params) * (len(grads) + len(others))


def test_layouts_of_absent_tasks_do_not_matter(flatten: Flatten) -> None:
    column = BASE.view(4, 30).t()
    assert flatten([[None], [column], [None]]).params == [0]
    assert flatten([[None], [column], [torch.ones(30, 4)]]).fallback == [0]


def test_vectors_need_every_address(flatten: Flatten) -> None:
    memory = torch.ones(64, dtype=torch.bfloat16)
    start = -memory.data_ptr() // 2 % (layout.VECTOR // 2)  # elements to the first aligned address

    def at(offset: int) -> Tensor:
        return memory[start + offset :][:9]

    expected = {0: True, 8: True, 16: True, 1: False, 4: False, 7: False, 9: False}
    for offset, vectors in expected.items():
        assert flatten([[at(0)], [at(offset)]]).aligned == [vectors]
        assert flatten([[at(offset)], [None]]).aligned == [vectors]
        assert flatten([[at(8)]], [[at(offset)]]).aligned == [vectors]
        assert flatten([[at(offset)]]).pointers.tolist() == [memory.data_ptr() + 2 * (start + offset)]


def test_subclasses_and_parameters_are_tensors_too(flatten: Flatten) -> None:
    class Wrapped(Tensor):
        pass

    plain = torch.ones(4)
    for t in torch.nn.Parameter(plain), plain.as_subclass(Wrapped), plain.requires_grad_() * 1:
        assert flatten([[t]]).pointers.tolist() == [t.data_ptr()]


def test_rows_may_be_tuples(flatten: Flatten) -> None:
    grads = tuple((torch.ones(3), None) for _ in range(2))
    assert flatten(grads, (grads[0],)).numels == [3]


@st.composite
def strided(draw: st.DrawFn) -> tuple[list[list[Tensor | None]], list[list[Tensor | None]]]:
    """Columns of tensors of one shape, in layouts that may agree."""
    tasks, others = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    columns = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        orders = st.sampled_from([tuple(range(len(shape))), tuple(reversed(range(len(shape))))])

        def tensor(shape: list[int] = shape, orders: Any = orders) -> Tensor | None:
            kind = draw(st.sampled_from(["dense", "dense", "offset", "gaps", "expanded", "absent"]))
            order = draw(orders)
            dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
            memory = torch.zeros([shape[d] for d in order] + [2], dtype=dtype)
            inverse = sorted(range(len(order)), key=order.__getitem__)
            if kind == "absent":
                return None
            if kind == "expanded":
                return torch.zeros([1] * len(shape), dtype=dtype).expand(shape)
            if kind == "gaps":
                return memory[..., 0].permute(inverse)
            size = memory[..., 0].numel()
            return memory.flatten()[kind == "offset" :][:size].view([shape[d] for d in order]).permute(inverse)

        columns.append([tensor() for _ in range(tasks + others)])
    rows = [list(row) for row in zip(*columns, strict=True)]
    return rows[:tasks], rows[tasks:]


@given(strided())
def test_the_compiled_function_finds_what_the_python_one_finds(rows: Any) -> None:
    assert layout.flatten(*rows) == layout._flatten(*rows)


def test_uniform_gradients(flatten: Flatten) -> None:
    a, b = torch.ones(2), torch.ones(3, 4)
    good: list[list[Tensor | None]] = [[None, b, None], [a, b.t().contiguous().t(), None]]
    if not layout._reads_tensors:
        assert layout.uniform(good) is None
        return
    found = layout.uniform(good)
    assert found == good and found is not None
    assert found.first[0] is a and found.first[1] is b and found.first[2] is None
    assert layout.flatten(found) == layout.flatten(good)  # with and without the views
    for other in torch.ones(3), torch.ones(2).double(), torch.ones(2, device="meta"), torch.ones(2).to_sparse(), 1.0:
        assert layout.uniform([[a, b], [other, b]]) is None
    assert layout.uniform([[a, b], [a]]) is None


def test_zeros_without_memory_are_odd() -> None:
    # Autograd returns such tensors for derivatives that it knows to be zero. They have no address.
    zero = torch._efficientzerotensor((3,))
    flat = layout.flatten([[zero, torch.ones(2)], [zero, torch.ones(2)]])
    assert flat.fallback == [0] and flat.params == [1]
    assert ops.gram([[zero, torch.ones(2)], [torch.ones(3), torch.ones(2)]]).tolist() == [[2, 2], [2, 5]]
