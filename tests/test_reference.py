"""The plain torch backend against a float64 oracle, and the properties every backend must have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cats import ops

Grads = list[list[Any]]  # of tensors and None

# Architecture's bounds: statistics relative to the norms, elements relative to the sum of absolute products.
STATISTICS = 2e-6
ROUNDING = 2.0**-24


def random_grads(tasks: int, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 0) -> Grads:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(tasks)]


def flat(grads: Grads, like: list[Tensor | None] | None = None) -> Tensor:
    """(K, P) float64, zero where a gradient is None and another task has one."""
    first = like or [next((g for g in column if g is not None), None) for column in zip(*grads, strict=True)]
    rows = []
    for row in grads:
        pieces = [torch.zeros_like(f) if g is None else g for g, f in zip(row, first, strict=True) if f is not None]
        rows.append(torch.cat([p.double().flatten() for p in pieces]))
    return torch.stack(rows)


def check(grads: Grads, weights: Any, rounding: float = ROUNDING) -> None:
    """combine, combine_dots, dots and gram against float64, within the bounds."""
    oracle, w = flat(grads), torch.as_tensor(weights, dtype=torch.float64)
    combined, dots, sqnorms = ops.combine_dots(grads, weights)
    expected, norms = w @ oracle, oracle.norm(dim=1)
    got = flat([combined])[0]
    allowed = (len(grads) + 1) * rounding * (w.abs() @ oracle.abs()) + 1e-45
    assert ((got - expected).abs() <= allowed).all()
    assert ((dots - oracle @ expected).abs() <= STATISTICS * norms * expected.norm()).all()
    assert ((sqnorms - norms**2).abs() <= STATISTICS * norms**2).all()

    again = ops.combine(grads, weights)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(again, combined, strict=True))
    direct = ops.dots(grads, combined)
    assert ((direct - oracle @ got).abs() <= STATISTICS * norms * got.norm()).all()
    gram = ops.gram(grads)
    assert ((gram - oracle @ oracle.T).abs() <= STATISTICS * norms[:, None] * norms).all()
    assert torch.equal(gram, gram.T)


SHAPES: list[tuple[int, ...]] = [(3, 5), (), (0,), (7,), (129, 257), (1,), (2, 0, 3), (4, 3, 2, 5)]


@pytest.mark.parametrize("tasks", [1, 2, 3, 8, 33, 128])
def test_matches_float64(tasks: int) -> None:
    shapes = SHAPES if tasks < 33 else [(1001,), (3, 5), ()]
    check(random_grads(tasks, shapes), torch.linspace(-1, 2, tasks, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-11), (torch.float64, 2.0**-53)]
)
def test_dtypes(dtype: torch.dtype, rounding: float) -> None:
    # Half a unit in the last place of the result's own dtype replaces float32's.
    check(random_grads(5, SHAPES, dtype), [0.3, -0.2, 1.5, 0.0, 1e-3], rounding)


def test_parameters_of_different_dtypes() -> None:
    grads: Grads = [
        [a, b.bfloat16(), c.double()]
        for a, b, c in (random_grads(1, [(9,), (8,), (3, 2)], seed=n)[0] for n in range(3))
    ]
    combined, dots, _ = ops.combine_dots(grads, [1.0, 2.0, 3.0])
    assert [t.dtype for t in combined] == [torch.float32, torch.bfloat16, torch.float64]
    oracle = flat(grads)
    expected = oracle @ (torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) @ oracle)
    torch.testing.assert_close(dots, expected, rtol=1e-14, atol=0)


def test_weights_are_not_rounded_to_the_gradients_dtype() -> None:
    # 1 + 2^-10 is 1 in bfloat16; with it the sum of 1 and -(1 + 2^-10) would vanish.
    one = torch.ones(3, dtype=torch.bfloat16)
    (combined,) = ops.combine([[one], [one]], [1.0, -(1 + 2.0**-10)])
    assert torch.equal(combined, torch.full((3,), -(2.0**-10), dtype=torch.bfloat16))


def test_dots_are_taken_before_rounding() -> None:
    # In bfloat16 the combination 1 + 2^-10 rounds to 1.
    grads = [[torch.ones(4, dtype=torch.bfloat16)], [torch.full((4,), 2.0**-10, dtype=torch.bfloat16)]]
    (combined,), dots, sqnorms = ops.combine_dots(grads, [1.0, 1.0])
    assert combined[0] == 1
    assert dots.tolist() == [4 * (1 + 2.0**-10), 4 * 2.0**-10 * (1 + 2.0**-10)]
    assert sqnorms.tolist() == [4, 4 * 2.0**-20]


def test_long_sums_of_one_sign() -> None:
    # What float32 sums get wrong: 4e6 terms of one sign, for which a plain float32 dot is off by 1e-4 and more.
    grads = random_grads(2, [(4_000_000,)])
    check([[g.abs_().add_(1)] for (g,) in grads], [0.7, 0.3])
    check([[torch.full((4_000_001,), 0.1)], [torch.full((4_000_001,), 0.3)]], [0.7, 0.3])


def test_mixed_magnitudes_and_subnormals() -> None:
    scale = 10.0 ** torch.linspace(-20, 20, 1001)
    check([[row[0] * scale] for row in random_grads(3, [(1001,)])], [0.2, 0.3, 0.5])
    tiny = torch.tensor([2.0**-149, -(2.0**-140), 2.0**-126])
    combined, dots, sqnorms = ops.combine_dots([[tiny], [tiny]], [1.0, 1.0])
    assert torch.equal(combined[0], 2 * tiny)
    square = tiny.double().square().sum().item()
    assert dots.tolist() == [2 * square] * 2 and sqnorms.tolist() == [square] * 2
    huge = torch.tensor([1e20, -1e20])
    assert ops.gram([[huge], [huge]]).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_what_is_not_finite_shows(value: float, weight: float) -> None:
    grads = random_grads(3, [(5,), (20_000,)])
    grads[1][1][12_345] = value
    combined, dots, sqnorms = ops.combine_dots(grads, [0.5, weight, 0.5])
    assert not combined[1][12_345].isfinite()
    assert combined[0].isfinite().all() and combined[1].isfinite().sum() == 19_999
    assert not dots.isfinite().any()
    assert sqnorms.isfinite().tolist() == [True, False, True]
    assert ops.gram(grads).isfinite().tolist() == [[True, False, True], [False] * 3, [True, False, True]]
    direction = [torch.ones(5), torch.ones(20_000)]
    assert ops.dots(grads, direction).isfinite().tolist() == [True, False, True]


def strided() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield "transposed", lambda t: t.t().contiguous().t()
    yield "every second", lambda t: torch.stack([t, t], -1)[..., 0]
    yield "misaligned", lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    yield "requires grad", lambda t: t.clone().requires_grad_()
    yield "leading axis far apart", lambda t: torch.stack([t, t])[0]


@pytest.mark.parametrize(("name", "layout"), list(strided()), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("shape", [(40, 1000), (2, 20_001), (20_001, 2)])
def test_layouts(name: str, layout: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    grads = random_grads(2, [shape, (3,)])
    changed = [[layout(a), b] for a, b in grads]
    combined, dots, sqnorms = ops.combine_dots(changed, [0.25, 0.75])
    expected = ops.combine_dots(grads, [0.25, 0.75])
    assert combined[0].is_contiguous() and not combined[0].requires_grad
    assert torch.equal(combined[0], expected[0][0])
    # Another partition, another order of float64 additions.
    torch.testing.assert_close(dots, expected[1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(sqnorms, expected[2], rtol=1e-13, atol=0)
    out = [layout(torch.zeros(shape)).detach(), torch.zeros(3)]
    ops.combine(grads, [0.25, 0.75], out=out)
    assert torch.equal(out[0], combined[0])


def test_expanded_gradients_take_no_memory() -> None:
    # In a process of its own, whose peak is the operators': 2^25 elements would take 128 MiB each if they were copied.
    code = """
import resource, torch
from cats import ops
def rows(shape): return [[torch.full((1,), float(n)).expand(shape)] for n in (1, 2)]
ops.gram(rows((1 << 16,)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shape in ((1 << 25,), (2, 1 << 24)):
    assert ops.gram(rows(shape)).tolist() == [[2.0**25, 2.0**26], [2.0**26, 2.0**27]]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert grown < 64


def test_none_is_a_task_that_does_not_touch_the_parameter() -> None:
    a, b, c = random_grads(3, [(4, 3), (5,), (6,), (20_000,)])
    grads: Grads = [[a[0], None, None, a[3]], [b[0], b[1], None, None], [None, None, None, c[3]]]
    check(grads, [0.2, -0.3, 0.5])
    combined = ops.combine(grads, [0.2, -0.3, 0.5])
    assert combined[2] is None
    # A task is left out, not multiplied by zero: its weight does not matter where it has no gradient.
    combined = ops.combine(grads, [1.0, float("nan"), 2.0])
    assert torch.equal(combined[3], a[3] + 2 * c[3])
    assert combined[0].isnan().all()


def test_rows_of_weights_are_separate_combinations() -> None:
    grads = random_grads(3, SHAPES)
    weights = torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5], [-1, 1, 3]], dtype=torch.float64)
    combined, dots, sqnorms = ops.combine_dots(grads, weights)
    assert dots.shape == (3, 3) and sqnorms.shape == (3,)
    for r, row in enumerate(weights):
        single, single_dots, single_sqnorms = ops.combine_dots(grads, row)
        assert all(torch.equal(x, y) for x, y in zip(combined[r], single, strict=True))
        assert torch.equal(dots[r], single_dots) and torch.equal(sqnorms, single_sqnorms)
    assert all(torch.equal(x, y) for x, y in zip(combined[0], grads[0], strict=True))


def test_groups_split_the_statistics() -> None:
    grads = random_grads(3, [(7,), (300, 100), (2, 2), (5,), (1,)])
    grads[1][2] = None
    groups = [2, 0, 2, 0, 3]
    weights = torch.tensor([[0.1, 0.2, 0.7], [1.0, -1.0, 0.0]], dtype=torch.float64)
    combined, dots, sqnorms = ops.combine_dots(grads, weights, groups=groups)
    gram = ops.gram(grads, groups=groups)
    along = ops.dots(grads, combined[0], groups=groups)
    assert dots.shape == (4, 2, 3) and sqnorms.shape == along.shape == (4, 3) and gram.shape == (4, 3, 3)
    for group in range(4):
        members = [i for i, g in enumerate(groups) if g == group]
        if not members:  # group 1 has none
            assert not dots[group].any() and not sqnorms[group].any() and not gram[group].any()
            continue
        part = [[row[i] for i in members] for row in grads]
        _, part_dots, part_sqnorms = ops.combine_dots(part, weights)
        torch.testing.assert_close(dots[group], part_dots, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(sqnorms[group], part_sqnorms, rtol=1e-13, atol=0)
        torch.testing.assert_close(gram[group], ops.gram(part), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(
            along[group], ops.dots(part, [combined[0][i] for i in members]), rtol=1e-13, atol=1e-13
        )
    plain = ops.combine_dots(grads, weights)
    torch.testing.assert_close(dots.sum(0), plain[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("size", [2**14 - 1, 2**14, 2**14 + 1, 2**15, 2**15 + 1])
def test_where_blocks_end(size: int) -> None:
    # The last elements are large: a block lost or counted twice cannot hide.
    for shapes in ([(size,)], [(size,), (2,), (size - 2,)], [(3, size)]):
        grads = random_grads(2, shapes)
        grads[0][-1].view(-1)[-1:].mul_(1e3)
        check(grads, [0.5, 2.0])
        check([[t.mT.contiguous().mT if t.dim() == 2 else t for t in row] for row in grads], [0.5, 2.0])
    out = ops.combine([[torch.ones(size, 2).t()]] * 2, [1.0, 1.0])
    assert (out[0] == 2).all()


@pytest.mark.parametrize("tasks", [1, 2, 7, 40])
def test_same_bits_for_every_number_of_threads(tasks: int) -> None:
    grads = random_grads(tasks, [(100_003,), (3,), (50, 77)])
    weights = torch.rand(2, tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def everything() -> list[Tensor]:
        combined, dots, sqnorms = ops.combine_dots(grads, weights)
        params = [g.clone() for g in grads[0] if g is not None]
        moments = [[torch.full_like(p, 1e-3) for p in params] for _ in range(2)]
        adamw = ops.combine_adamw_(params, grads, weights[0], *moments, step=3, **ADAMW)
        tensors = [*combined[0], *combined[1], *params, *moments[0], *moments[1], *adamw]
        return [*tensors, dots, sqnorms, ops.gram(grads), ops.dots(grads, combined[1])]

    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(everything())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


# Properties. Integers of a few bits make every sum exact, so equality is equality.


@st.composite
def integer_grads(draw: st.DrawFn) -> Grads:
    tasks = draw(st.integers(1, 6))
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    touched = [[draw(st.integers(0, 5)) > 0 for _ in shapes] for _ in range(tasks)]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    return [
        [
            torch.randint(-8, 9, shape, generator=generator).to(dtype) if present else None
            for shape, present in zip(shapes, row, strict=True)
        ]
        for row in touched
    ]


def same(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(left, right, strict=True))


@settings(max_examples=60, deadline=None)
@given(integer_grads(), st.data())
def test_linear_in_the_weights(grads: Grads, data: st.DataObject) -> None:
    # Below 2^8 in absolute value, integers are exact in every dtype.
    few = st.lists(st.integers(-2, 2), min_size=len(grads), max_size=len(grads))
    a, b = data.draw(few), data.draw(few)
    both, dots, _ = ops.combine_dots(grads, [x + y for x, y in zip(a, b, strict=True)])
    (left, right), parts, _ = ops.combine_dots(grads, [a, b])
    assert same(both, [None if x is None else x + y for x, y in zip(left, right, strict=True)])
    assert torch.equal(dots, parts.sum(0))


@settings(max_examples=60, deadline=None)
@given(integer_grads(), st.randoms(use_true_random=False))
def test_order_of_the_tasks_does_not_matter(grads: Grads, random: Any) -> None:
    order = list(range(len(grads)))
    random.shuffle(order)
    weights = [2.0**-n for n in range(len(grads))]
    combined, dots, sqnorms = ops.combine_dots(grads, weights)
    shuffled = [grads[n] for n in order]
    other, other_dots, other_sqnorms = ops.combine_dots(shuffled, [weights[n] for n in order])
    assert same(combined, other)
    assert torch.equal(dots[order], other_dots) and torch.equal(sqnorms[order], other_sqnorms)
    assert torch.equal(ops.gram(grads)[order][:, order], ops.gram(shuffled))


@settings(max_examples=40, deadline=None)
@given(st.integers(-30, 30), st.integers(1, 5), st.integers(0, 1000))
def test_powers_of_two_scale_exactly(power: int, tasks: int, seed: int) -> None:
    scale = 2.0**power
    grads = random_grads(tasks, [(37,), (3, 4)], seed=seed)
    weights = torch.rand(tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scaled = [[g * scale for g in row if g is not None] for row in grads]
    combined, dots, sqnorms = ops.combine_dots(grads, weights)
    other, other_dots, other_sqnorms = ops.combine_dots(scaled, weights)
    assert all(torch.equal(x * scale, y) for x, y in zip(combined, other, strict=True))
    assert torch.equal(dots * scale**2, other_dots) and torch.equal(sqnorms * scale**2, other_sqnorms)
    assert torch.equal(ops.gram(grads) * scale**2, ops.gram(scaled))
    assert all(torch.equal(x * scale, y) for x, y in zip(combined, ops.combine(grads, weights * scale), strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 1000))
def test_gram_is_positive_semidefinite(tasks: int, size: int, seed: int) -> None:
    gram = ops.gram(random_grads(tasks, [(size,)], seed=seed))  # of rank `size` at most
    assert torch.equal(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() >= -1e-12 * gram.trace()


# AdamW

ADAMW: dict[str, Any] = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1}


def adamw_state(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    params = [p.to(dtype) for p in random_grads(1, [(30, 700), (5,), (), (8,)], seed=9)[0] if p is not None]
    moments = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        params,
        [torch.zeros_like(p, dtype=moments) for p in params],
        [torch.zeros_like(p, dtype=moments) for p in params],
    )


def task_grads(step: int, dtype: torch.dtype = torch.float32) -> Grads:
    grads = random_grads(3, [(30, 700), (5,), (), (8,)], dtype, seed=step)
    grads[0][1] = None
    return [[*row[:3], None] for row in grads]  # no task touches the last parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_is_torchs_on_the_combined_gradient(dtype: torch.dtype) -> None:
    weights = [0.2, 0.3, 0.5]
    params, exp_avgs, exp_avg_sqs = adamw_state(dtype)
    leaves = [p.clone().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, foreach=False)
    for step in range(1, 6):
        grads = task_grads(step, dtype)
        combined, dots, sqnorms = ops.combine_dots(grads, weights)
        for leaf, grad in zip(leaves, combined, strict=True):
            leaf.grad = grad
        optimizer.step()
        statistics = ops.combine_adamw_(params, grads, weights, exp_avgs, exp_avg_sqs, step=step, **ADAMW)
        assert torch.equal(statistics[0], dots) and torch.equal(statistics[1], sqnorms)
    # The same operations in the same order; a few units in the last place where torch's kernels fuse one of them.
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    for leaf, param, avg, square in zip(leaves, params, exp_avgs, exp_avg_sqs, strict=True):
        torch.testing.assert_close(param, leaf.detach(), **tolerance)
        if leaf.grad is not None:
            torch.testing.assert_close(avg, optimizer.state[leaf]["exp_avg"], **tolerance)
            torch.testing.assert_close(square, optimizer.state[leaf]["exp_avg_sq"], **tolerance)
    untouched = adamw_state(dtype)[0][3]
    assert torch.equal(params[3], untouched) and not exp_avgs[3].any() and not exp_avg_sqs[3].any()


def test_adamw_of_bfloat16_parameters_rounds_once() -> None:
    weights = [0.2, 0.3, 0.5]
    params, exp_avgs, exp_avg_sqs = adamw_state(torch.bfloat16)
    leaves = [p.float().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, foreach=False)
    for step in range(1, 6):
        grads = task_grads(step, torch.bfloat16)
        wide = ops.combine([[None if g is None else g.float() for g in row] for row in grads], weights)
        for leaf, grad in zip(leaves, wide, strict=True):
            leaf.grad = grad
        optimizer.step()
        ops.combine_adamw_(params, grads, weights, exp_avgs, exp_avg_sqs, step=step, **ADAMW)
        for leaf, param in zip(leaves, params, strict=True):
            assert torch.equal(param, leaf.detach().bfloat16())
            leaf.data.copy_(param)


def test_adamw_takes_tensors_for_step_and_lr() -> None:
    states = adamw_state(), adamw_state()
    grads, weights = task_grads(0), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for step in (1, 2):
        ops.combine_adamw_(states[0][0], grads, weights, *states[0][1:], step=step, **ADAMW)
        options = ADAMW | {"lr": torch.tensor([1e-2], dtype=torch.float64)}
        ops.combine_adamw_(states[1][0], grads, weights, *states[1][1:], step=torch.tensor(float(step)), **options)
    for left, right in zip(*states, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def test_adamw_found_inf_leaves_everything_as_it_was() -> None:
    state, grads = adamw_state(), task_grads(0)
    grads[2][0][3, 3] = float("inf")
    before = [[t.clone() for t in tensors] for tensors in state]
    _, sqnorms = ops.combine_adamw_(
        state[0], grads, [0.2, 0.3, 0.5], *state[1:], step=1, found_inf=torch.ones(1), **ADAMW
    )
    assert sqnorms.isfinite().tolist() == [True, True, False]
    for left, right in zip(before, state, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))
    ops.combine_adamw_(state[0], task_grads(0), [0.2, 0.3, 0.5], *state[1:], step=1, found_inf=torch.zeros(1), **ADAMW)
    assert not torch.equal(before[0][0], state[0][0])


def test_adamw_divides_the_gradient_by_grad_scale() -> None:
    scaled, plain = adamw_state(), adamw_state()
    grads = task_grads(0)
    large = [[None if g is None else g * 1024 for g in row] for row in grads]
    options = {"step": 1, **ADAMW}
    dots, _ = ops.combine_adamw_(
        scaled[0], large, [0.2, 0.3, 0.5], *scaled[1:], grad_scale=torch.tensor(1024.0), **options
    )
    expected, _ = ops.combine_adamw_(plain[0], grads, [0.2, 0.3, 0.5], *plain[1:], **options)
    for left, right in zip(scaled, plain, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))
    assert torch.equal(dots, expected * 1024**2)  # of the gradients as given


def test_adamw_of_strided_parameters() -> None:
    grads = random_grads(2, [(300, 100)])
    param = torch.randn(100, 300, generator=torch.Generator().manual_seed(3)).t()
    other = param.contiguous()
    states = [[torch.zeros(300, 100)] for _ in range(4)]
    ops.combine_adamw_([param], grads, [0.5, 0.5], *states[:2], step=1, **ADAMW)
    ops.combine_adamw_([other], grads, [0.5, 0.5], *states[2:], step=1, **ADAMW)
    assert torch.equal(param, other) and torch.equal(states[0][0], states[2][0])
