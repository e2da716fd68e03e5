"""Tests of several operators with every backend: non-finite numbers, equal bits, torch.compile, size, memory."""

from __future__ import annotations

import mmap
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cats.ops import device_table
from tests.ops.common import (
    ADAMW,
    STATISTICS,
    Backend,
    Grads,
    Shape,
    State,
    check_combine,
    check_combine_dots,
    close,
    examples,
    integer_grads,
    same,
    to,
)


@pytest.mark.parametrize("tasks", [2, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.long_interpreted
def test_rows_of_zeros_are_told_from_tiny_numbers(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    # Most of an embedding's gradient is zero. Other elements may be so small that float32 cannot hold their squares.
    value, size = 2.0**-90, 2100
    zeros = 0 * torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0).to(dtype)  # of both signs
    for place in 0, 1023, size - 1:
        grads = backend.rows(tasks, [(size,)], lambda shape: zeros.clone())
        grads[1][0][place] = value
        direction = [torch.zeros(size, dtype=dtype, device=backend.device)]
        assert not backend.dots(grads, direction).any() and not backend.dots(grads[:1], grads[1]).any()
        direction[0][place] = value
        combined, dots, sqnorms = backend.combine_dots(grads, [1.0] * tasks)
        assert combined[0].count_nonzero() == 1 and float(combined[0][place]) == value
        found = torch.stack([dots, sqnorms, backend.dots(grads, direction), backend.gram(grads)[1]]).cpu()
        expected = torch.zeros(4, tasks, dtype=torch.float64)
        if backend.name in ("reference", "native"):
            expected[:, 1] = value**2
        assert torch.equal(found, expected), (place, found)


@pytest.mark.parametrize("tasks", [3, 16])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in Triton's interpreter
def test_what_is_not_there_has_no_product_with_infinity(backend: Backend, tasks: int) -> None:
    # For tasks without a gradient and beyond the end of a tensor, registers hold zeros; and 0 times infinity is NaN.
    grads = backend.integers(tasks, [(5,), (3,)])
    expected = backend.gram([[row[1]] for row in grads])[0]
    grads[0][0] = None
    grads[1][0][2] = float("inf")
    weights, direction = [0.5] * tasks, [torch.ones_like(t) for t in grads[1]]
    direction[0][2] = float("inf")
    state = State(backend, shapes=[(5,), (3,)])
    for dots in backend.combine_dots(grads, weights)[1], state.update(grads, weights)[0]:
        assert dots[0] == expected.sum() * 0.5 and not dots[1:].isfinite().any()
    assert torch.equal(backend.gram(grads)[0], expected)
    assert backend.dots(grads, direction)[0] == grads[0][1].sum()


@pytest.mark.parametrize("size", [5, 20, 70])
@pytest.mark.parametrize("tasks", [1, 3, 16])
@pytest.mark.long_interpreted
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinite_weight_meets_no_zeros_behind_the_end(backend: Backend, tasks: int, size: int) -> None:
    ones, infinite = [[torch.ones(size, device=backend.device)] for _ in range(tasks)], [float("inf")] * tasks
    state = State(backend, shapes=[(size,)])
    for dots in backend.combine_dots(ones, infinite)[1], state.update(ones, infinite)[0]:
        assert dots.tolist() == infinite
    two = torch.tensor([[1.0] * tasks, infinite])  # two combinations of one read
    assert backend.combine_dots(ones, two)[1].tolist() == [[float(tasks * size)] * tasks, infinite]


@pytest.mark.parametrize(("size", "weight"), [(1e-8, 1e-28), (1e-4, 1e-35), (1e-3, 1e-36)])
@pytest.mark.parametrize("tasks", [2, 9])
def test_weights_near_the_end_of_the_range(backend: Backend, tasks: int, size: float, weight: float) -> None:
    if backend.name not in ("reference", "native"):
        pytest.skip("only backends of the CPU promise products beyond float32's range")
    grads = backend.rows(tasks, [(4096,)], lambda shape: size * torch.randn(shape))
    check_combine_dots(backend, grads, [weight] * tasks)


@pytest.mark.parametrize("tasks", [3, 33])
@pytest.mark.parametrize(
    ("value", "weight"), [(float("nan"), 0.0), (float("inf"), 0.0), (float("inf"), 0.5), (-float("inf"), 0.5)]
)
def test_what_is_not_finite_shows(backend: Backend, value: float, weight: float, tasks: int) -> None:
    tasks = backend.few(tasks)
    sizes = [5, 35] if backend.interpreted else [5, 20_001]
    weights = [weight if n == 1 else 0.5 for n in range(tasks)]
    finite = [n != 1 for n in range(tasks)]
    direction = [torch.ones(size, device=backend.device) for size in sizes]
    for place in (0,) if backend.interpreted else (0, 12_345, 20_000):  # a vector, another block, a tail
        grads = backend.normal(tasks, [(size,) for size in sizes])
        grads[1][1][place] = value
        combined, dots, sqnorms = backend.combine_dots(grads, weights)
        plain = backend.combine(grads, weights)
        for left, right in (combined, plain):
            assert left.isfinite().all() and (~right.isfinite()).nonzero().tolist() == [[place]]
        assert not dots.isfinite().any()
        assert sqnorms.isfinite().tolist() == finite
        assert backend.dots(grads, direction).isfinite().tolist() == finite
        assert backend.gram(grads).isfinite().tolist() == [[a and b for b in finite] for a in finite]
    # If it is alone in its group, the other groups stay finite.
    _, dots, sqnorms = backend.combine_dots(grads, weights, groups=[0, 1])
    assert dots.isfinite().all(1).tolist() == sqnorms.isfinite().all(1).tolist() == [True, False]
    assert backend.gram(grads, groups=[0, 1]).isfinite().all(2).all(1).tolist() == [True, False]


def test_sums_do_not_lose_many_small_terms_to_a_large_one(backend: Backend) -> None:
    # The worst input for float32 sums: after the first terms, all terms are below half of the sum's last bit.
    period, size = (64, 4096) if backend.interpreted else (1024, 1 << 20)
    row = torch.full((size,), 0.99**0.5 * 2.0**-12).view(-1, period)
    row[:, :16] = 1.0
    grads = [[row.flatten().to(backend.device)]] * 2
    square = row.double().square().sum()
    _, dots, sqnorms = backend.combine_dots(grads, [0.5, 0.5])
    for name, got in ("dots", dots), ("sqnorms", sqnorms), ("gram", backend.gram(grads)):
        close(got, square.expand(got.shape), STATISTICS * square, name)
    close(backend.dots(grads, grads[0]), square.expand(2), STATISTICS * square, "dots with a direction")


def test_weights_that_float32_cannot_hold(backend: Backend) -> None:
    # 1e39 is no float32, and a float32 near 1e-41 has 13 bits.
    grads = [[1e-30 * g for g in row] for row in backend.normal(3, [(40,), (3, 5)])]
    grads[1] = [1e35 * g for g in grads[1]]
    weights = [1e39, 1.2345678e-41, -2.0]
    check_combine(backend, grads, weights)
    check_combine_dots(backend, grads, [weights, [1e-46, 0.0, 1.0]])
    scaled = backend.combine([[1e39 * g.double() for g in row] for row in grads], [1.0, 1.2345678e-80, -2e-39])
    states = [State(backend, dtype, [(40,), (3, 5)]) for dtype in (torch.float32, torch.float64)]
    for state in states:
        given = grads if state is states[0] else [[g.double() for g in row] for row in grads]
        state.update(given, weights, weight_decay=0.0, eps=1e-3)
    for a, b, c in zip(*(state.exp_avgs for state in states), scaled, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)
        torch.testing.assert_close(b * 10, c, rtol=1e-9, atol=0)


@pytest.mark.parametrize("weight", [float("inf"), -float("inf"), float("nan")])
def test_weights_that_are_not_finite_show(backend: Backend, weight: float) -> None:
    grads = backend.integers(2, [(40,)])
    grads[0][0][7] = 0
    combined = backend.combine(grads, [weight, 1.0])[0].cpu().double()
    torch.testing.assert_close(
        combined, weight * grads[0][0].cpu().double() + grads[1][0].cpu().double(), equal_nan=True
    )


# Bits


def everything(backend: Backend, grads: Grads) -> list[Tensor]:
    tasks = len(grads)
    weights = torch.rand(2, tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    combined, dots, sqnorms = backend.combine_dots(grads, weights)
    plain = backend.combine(grads, weights[0])
    state = State(backend, grads[0][0].dtype, [g.shape for g in grads[0]])
    adamw = state.update(grads, weights[0], step=3)
    statistics = [dots, sqnorms, backend.gram(grads), backend.dots(grads, combined[1])]
    statistics += backend.graddrop(grads, seed=1)
    return [*combined[0], *combined[1], *plain, *state.tensors, *adamw, *statistics]


@pytest.mark.parametrize("tasks", [1, 2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_every_run_and_for_every_number_of_threads(
    backend: Backend, dtype: torch.dtype, tasks: int
) -> None:
    shapes: list[Shape] = [(100_003,), (3,), (50, 77)]
    if backend.interpreted:
        pytest.skip("the interpreter runs one program after the other")
    grads = backend.normal(tasks, shapes, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(everything(backend, grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("tasks", [2, 9])
@pytest.mark.long_interpreted
def test_same_bits_for_a_list_and_its_flat_view(backend: Backend, tasks: int) -> None:
    # The pieces are whole blocks of every backend: a block is a power of two of at most this many elements.
    piece, count = (device_table.MIN_CHUNK, 2) if backend.interpreted else (1 << 16, 3)
    whole = backend.normal(tasks, [(piece * count,)])
    pieces = [list(row[0].split(piece)) for row in whole]
    one, many = State(backend, shapes=[(piece * count,)]), State(backend, shapes=[(piece * count,)])
    flat_adamw = one.update(whole, [0.5] * tasks)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        setattr(many, name, list(getattr(many, name)[0].split(piece)))
    list_adamw = many.update(pieces, [0.5] * tasks)
    combined, *flat = backend.combine_dots(whole, [0.3] * tasks)
    parts, *listed = backend.combine_dots(pieces, [0.3] * tasks)
    assert torch.equal(combined[0], torch.cat(parts))
    assert torch.equal(one.params[0], torch.cat(many.params))
    flat += [*flat_adamw, backend.gram(whole), backend.dots(whole, combined)]
    listed += [*list_adamw, backend.gram(pieces), backend.dots(pieces, parts)]
    assert all(torch.equal(x, y) for x, y in zip(flat, listed, strict=True))


@pytest.mark.long_interpreted
def test_order_of_the_tasks_does_not_matter(backend: Backend) -> None:
    @examples(backend)
    @given(integer_grads(), st.randoms(use_true_random=False))
    def holds(host: Grads, random: Any) -> None:
        grads, order = to(backend, host), list(range(len(host)))
        random.shuffle(order)
        weights = [2.0**-n for n in range(len(grads))]
        combined, dots, sqnorms = backend.combine_dots(grads, weights)
        shuffled = [grads[n] for n in order]
        other, other_dots, other_sqnorms = backend.combine_dots(shuffled, [weights[n] for n in order])
        assert same(combined, other)
        assert torch.equal(dots[order], other_dots) and torch.equal(sqnorms[order], other_sqnorms)
        assert torch.equal(backend.gram(grads)[order][:, order], backend.gram(shuffled))

    holds()


@pytest.mark.long_interpreted
def test_powers_of_two_scale_exactly(backend: Backend) -> None:
    @examples(backend)
    @given(st.integers(-30, 30), st.integers(1, 9), st.integers(0, 1000))
    def holds(power: int, tasks: int, seed: int) -> None:
        scale = 2.0**power
        grads = backend.normal(tasks, [(37,), (3, 4)], seed=seed)
        weights = torch.rand(tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        scaled = [[g * scale for g in row] for row in grads]
        combined, dots, sqnorms = backend.combine_dots(grads, weights)
        other, other_dots, other_sqnorms = backend.combine_dots(scaled, weights)
        assert all(torch.equal(x * scale, y) for x, y in zip(combined, other, strict=True))
        assert torch.equal(dots * scale**2, other_dots) and torch.equal(sqnorms * scale**2, other_sqnorms)
        assert torch.equal(backend.gram(grads) * scale**2, backend.gram(scaled))
        weighted = backend.combine(grads, weights * scale)
        assert all(torch.equal(x * scale, y) for x, y in zip(backend.combine(grads, weights), weighted, strict=True))

    holds()


# torch.library and torch.compile


TRACED: list[Shape] = [(3, 4), (5,), (), (2, 0), (6,)]


def traced_grads(backend: Backend) -> Grads:
    """Three tasks. Task 1 does not use the second parameter, no task uses the last. Those of task 2 require grad."""
    grads = backend.normal(3, TRACED)
    grads[1][1] = None
    grads[2] = [g.requires_grad_() for g in grads[2]]
    return [[*row[:-1], None] for row in grads]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.long_interpreted
def test_operators_pass_opcheck(backend: Backend, rows: int) -> None:
    if backend.interpreted and rows > 1:
        pytest.skip("once will do in the interpreter")
    flat = [g for row in traced_grads(backend) for g in row]
    weights = torch.tensor([[0.5, 0.25, -1.0]] * rows, dtype=torch.float64)
    namespace, groups, last = torch.ops.cats, [0, 2, 0, 0, 1], backend.name
    out = [torch.zeros(shape, device=backend.device) for shape in TRACED[:-1] * rows]
    torch.library.opcheck(namespace.combine.default, (flat, 3, weights, out, last))
    torch.library.opcheck(namespace.combine_dots.default, (flat, 3, weights, out, groups, last))
    if rows == 1:
        direction = [torch.ones(shape, device=backend.device) for shape in TRACED[:-1]] + [None]
        torch.library.opcheck(namespace.dots.default, (flat, 3, direction, groups, last))
        torch.library.opcheck(namespace.gram.default, (flat, 3, groups, last))
        positions = [i << 40 for i in range(5)]
        torch.library.opcheck(namespace.graddrop.default, (flat, 3, weights.abs(), out, 5, 2, positions, last))
        state = State(backend, shapes=TRACED)
        scalars = (torch.tensor(1.0), torch.tensor(0.1), 0.9, 0.98, 1e-8, 0.01)
        for extra in ((None, None), (torch.tensor(0.0), torch.tensor(2.0))):
            extra = tuple(None if t is None else t.to(backend.device) for t in extra)
            arguments = (state.params, flat, 3, weights, state.exp_avgs, state.exp_avg_sqs, *scalars, *extra)
            torch.library.opcheck(namespace.combine_adamw_.default, (*arguments, groups, last))


@pytest.mark.long_interpreted
def test_compiles_without_a_break(backend: Backend) -> None:
    rows = torch.tensor([[0.5, 0.25, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)

    def call(grads: Grads, direction: list[Any], params: list[Tensor], *moments: list[Tensor]) -> Any:
        doubled = [[None if g is None else 2 * g for g in row] for row in grads]
        plain = backend.combine(doubled, [0.5, 0.25, -1.0])
        combined, dots, sqnorms = backend.combine_dots(grads, rows, groups=[0, 1, 0, 1, 2])
        along, gram = backend.dots(grads, direction), backend.gram(grads)
        signs = [t for t in backend.graddrop(grads, seed=1) if t is not None]
        update = backend.combine_adamw_(params, grads, rows[0], *moments, step=1, **ADAMW)
        return plain[0] + 1, combined[1][0] * dots.sum(), combined[0][4], sqnorms, along, gram.trace(), *signs, *update

    torch.compiler.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    grads, direction = traced_grads(backend), [torch.ones(s, device=backend.device) for s in TRACED[:-1]] + [None]
    states = State(backend, shapes=TRACED), State(backend, shapes=TRACED)
    results = [
        function(grads, direction, state.params, state.exp_avgs, state.exp_avg_sqs)
        for function, state in zip((compiled, call), states, strict=True)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert same(states[0].tensors, states[1].tensors)


def test_shapes_are_known_without_data(backend: Backend) -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        grads = [[None if g is None else mode.from_tensor(g) for g in row] for row in traced_grads(backend)]
        combined, dots, sqnorms = backend.combine_dots(grads, [[1.0, 2.0, 3.0]] * 2, groups=[0, 0, 1, 0, 0])
        assert [[None if t is None else tuple(t.shape) for t in row] for row in combined] == [[*TRACED[:4], None]] * 2
        assert (dots.shape, sqnorms.shape, dots.dtype) == ((2, 2, 3), (2, 3), torch.float64)
        assert dots.device.type == sqnorms.device.type == backend.device.type
        signs = backend.graddrop(grads, seed=1)
        assert [None if t is None else tuple(t.shape) for t in signs] == [*TRACED[:4], None]
        assert backend.gram(grads).shape == (3, 3) and backend.dots(grads, combined[0]).shape == (3,)


# Size


@pytest.mark.slow  # minutes, 4 GiB of memory
def test_more_elements_than_int32_counts(backend: Backend) -> None:
    if backend.interpreted:
        pytest.skip("would take days in the interpreter")
    size = (1 << 31) + 70_001
    places = torch.tensor([0, 1 << 30, (1 << 31) - 1, 1 << 31, size - 1])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.bfloat16)
    # Zeros, except where a 32-bit index ends. On a CPU, pages that are only read take no memory.
    if backend.device.type == "cpu":
        marked = torch.frombuffer(mmap.mmap(-1, 2 * size, flags=mmap.MAP_PRIVATE), dtype=torch.bfloat16)
    else:
        marked = torch.zeros(size, dtype=torch.bfloat16, device=backend.device)
    for place, value in zip(places.tolist(), values, strict=True):
        marked[place] = value
    assert backend.gram([[marked]]).item() == backend.dots([[marked]], [marked]).item() == 55
    (combined,), dots, sqnorms = backend.combine_dots([[marked]], [2.0])
    assert (dots.item(), sqnorms.item()) == (110, 55)
    assert torch.equal(combined[places].cpu(), 2 * values) and combined.count_nonzero() == len(values)
    combined.fill_(float("nan"))
    backend.graddrop([[marked]], seed=1, out=[combined])
    assert torch.equal(combined[places].cpu(), values) and combined.count_nonzero() == len(values)
    combined.fill_(float("nan"))
    backend.combine([[marked]], [2.0], out=[combined])
    assert torch.equal(combined[places].cpu(), 2 * values) and combined.count_nonzero() == len(values)
    if backend.device.type == "cuda":  # on a CPU the moments would take another 16 GiB
        moments = [[torch.zeros(size, device=backend.device)] for _ in range(2)]
        _, sqnorms = backend.combine_adamw_([combined.zero_()], [[marked]], [1.0], *moments, step=1, **ADAMW)
        assert sqnorms.item() == 55
        assert combined[places].tolist() == [-torch.tensor(1e-2).bfloat16().item()] * len(values)
        assert all(t.count_nonzero() == len(values) for t in (combined, *moments[0], *moments[1]))


# Arguments and results exist before the measurement. A first call on little data loads what is loaded only once.
MEMORY = """
import resource, sys, torch
from cats import ops
backend, tasks, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def run(size):
    grads = [[torch.full((size,), float(n))] for n in range(tasks)]
    others = [[torch.ones(size)] for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ops.combine(grads, [1.0] * tasks, out=others[0], backend=backend)
    ops.combine_dots(grads, [1.0] * tasks, out=others[0], backend=backend)
    ops.dots(grads, others[0], backend=backend)
    ops.gram(grads, backend=backend)
    ops.graddrop(grads, seed=1, out=others[0], backend=backend)
    ops.combine_adamw_(others[0], grads, [1.0] * tasks, *others[1:], step=1, lr=0.1, beta1=0.9, beta2=0.98, eps=1e-8,
                       weight_decay=0.0, backend=backend)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
run(1000)
print(run(size) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "size"), [(2, 10_000_000), (64, 200_000)])
def test_memory_beyond_arguments_and_results(backend: Backend, tasks: int, size: int) -> None:
    """It stays below 64 MB. The arguments have more."""
    if backend.interpreted:
        pytest.skip("the interpreter's own memory would be measured")
    if backend.device.type == "cpu":
        command = [sys.executable, "-c", MEMORY, backend.name, str(tasks), str(size)]
        taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 2**20
    else:
        grads, state = backend.normal(tasks, [(size,)]), State(backend, shapes=[(size,)])
        combined = torch.empty_like(grads[0][0])
        torch.cuda.reset_peak_memory_stats(backend.device)
        before = torch.cuda.memory_allocated(backend.device)
        backend.combine_dots(grads, [1.0] * tasks, out=[combined])
        backend.dots(grads, [combined])
        backend.gram(grads)
        backend.graddrop(grads, seed=1, out=[combined])
        state.update(grads, [1.0] * tasks)
        taken = torch.cuda.max_memory_allocated(backend.device) - before
    assert taken < 64e6
