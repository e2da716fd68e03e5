"""graddrop with every backend: its random numbers bit by bit, values against float64, layouts, wrong arguments."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from cats import ops
from tests.ops.common import (
    ARITHMETIC,
    FLOATS,
    LAYOUTS,
    MANY,
    SHORT,
    SMALLEST,
    Backend,
    Grads,
    Shape,
    offset,
    same,
    stack,
)
from tests.ops.small import GOOD

WORD = 2**32


def philox(counter: Any, key: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Philox4x32-10 as in Salmon et al. (2011), section 3.3: (4, ...) words from (4, ...) words of counters."""
    a, b, c, d = np.array(counter, dtype=np.uint64)
    word, half = np.uint64(WORD - 1), np.uint64(32)
    for r in range(10):
        low, high = (np.uint64((k + r * bump) % WORD) for k, bump in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (q >> half) ^ b ^ low, q & word, (p >> half) ^ d ^ high, p & word
    return np.stack([a, b, c, d])


def uniforms(seed: int, step: int, position: int, count: int) -> Tensor:
    """U of `count` elements, (count,) float64, as the docstring of graddrop defines it."""
    blocks = np.arange(position // 4, (position + count - 1) // 4 + 1)
    steps = [np.full_like(blocks, part) for part in (step % WORD, step // WORD)]
    words = philox([blocks % WORD, blocks // WORD, *steps], (seed % WORD, (seed // WORD) % WORD)).T.flatten()
    bits = words[position % 4 :][:count].astype(np.int64) >> 8
    return torch.from_numpy((bits + 0.5) / 2**24)


def found_uniforms(backend: Backend, dtype: torch.dtype, shape: Shape, **options: Any) -> Tensor:
    """U of a tensor's elements, found by bisection: of gradients 1 + t and -(1 - t), P is (1 + t) / 2."""
    low, high = torch.full(shape, -1.0, dtype=torch.float64), torch.full(shape, 1.0, dtype=torch.float64)
    for _ in range(24):
        t = (low + high) / 2  # with at most 24 binary digits
        grads = [[(1 + t).to(dtype).to(backend.device)], [(t - 1).to(dtype).to(backend.device)]]
        above = backend.graddrop(grads, **options)[0].cpu() > 0  # P > U
        low, high = torch.where(above, low, t), torch.where(above, t, high)
    return (1 + (low + high) / 2) / 2


def check(backend: Backend, grads: Grads, seed: int = 7, leak: Any = 0.0, **options: Any) -> list[Tensor | None]:
    """graddrop against float64: the right sign, unless P is close to U, and the sum within its bound."""
    results = backend.graddrop(grads, seed=seed, leak=leak, **options)
    tasks = len(grads)
    leaks = torch.as_tensor(leak, dtype=torch.float64).expand(tasks)[:, None]
    positions = options.get("positions") or [i << 40 for i in range(len(grads[0]))]
    for i, (g, column) in enumerate(zip(stack(grads), zip(*grads, strict=True), strict=True)):
        first, result = next((t for t in column if t is not None), None), results[i]
        if g is None or first is None:
            assert result is None
            continue
        assert result is not None and not result.requires_grad
        assert (result.shape, result.dtype, result.device) == (first.shape, first.dtype, first.device)
        if first.numel() == 0:
            continue
        unit = ARITHMETIC.get(first.dtype, 2.0**-24)
        share = (1 + g.sum(0) / g.abs().sum(0).clamp(min=1e-300)) / 2
        u = uniforms(seed, options.get("step", 0), positions[i], first.numel())
        got, either = result.cpu().double().flatten(), []
        for sign in (1, -1):
            terms = torch.where(sign * g > 0, 1.0, leaks) * g
            expected, size = terms.sum(0), terms.abs().sum(0)
            allowed = (tasks + 1) * (unit * size + SMALLEST)
            if first.dtype in SHORT:
                relative, smallest = SHORT[first.dtype]
                allowed += relative * (expected.abs() + allowed) + smallest
            either.append((got - expected).abs() <= allowed)
        near = (share - u).abs() < (tasks + 4) * unit
        right = torch.where(share > u, *either) | (near & (either[0] | either[1]))
        assert right.all(), f"parameter {i}, {first.dtype} {tuple(first.shape)}: {int((~right).sum())} are wrong"
    return results


# The random numbers


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # From the test vectors of the authors' implementation, Random123.
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((WORD - 1,) * 4, (WORD - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_oracle_is_philox(counter: Any, key: Any, expected: str) -> None:
    assert [f"{int(word):08x}" for word in philox(counter, key)] == expected.split()


@pytest.mark.parametrize(
    ("seed", "step", "position"),
    [(0, 0, 0), (1, 2, 1), (-5, 2**40 + 3, 2**41 + 2), (2**62, 2**62, 2**35 - 2), (2**33 + 7, 0, 2**50 + 3)],
)
def test_random_numbers_bit_by_bit(backend: Backend, seed: int, step: int, position: int) -> None:
    dtypes = (torch.float32,) if backend.interpreted else (torch.float32, torch.float64)
    for dtype, size in ((dtype, size) for dtype in dtypes for size in (531, 7)):
        found = found_uniforms(backend, dtype, (size,), seed=seed, step=step, positions=[position])
        assert torch.equal(found, uniforms(seed, step, position, size)), (dtype, size)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_same_numbers_for_every_dtype_and_place(backend: Backend, dtype: torch.dtype) -> None:
    # Gradients 1 and -1: P is 1/2, so the sign of an element is the first bit of its number.
    ones = [torch.ones(shape, dtype=dtype, device=backend.device) for shape in ((530,), (3, 5), (9,))]
    expected = [(uniforms(3, 1, i << 40, t.numel()) < 0.5).view(t.shape) for i, t in enumerate(ones)]
    for by in (0, 1, 3):
        grads = [[offset(t, by) for t in ones], [offset(-t, 2 * by) for t in ones]]
        results = backend.graddrop(grads, seed=3, step=1)
        assert all(torch.equal(t.cpu() > 0, e) for t, e in zip(results, expected, strict=True))
    # A parameter in parts, each with its own position.
    cuts = [0, 1, 6, 262, 301, 530]
    parts = [ones[0][a:b] for a, b in itertools.pairwise(cuts)]
    results = backend.graddrop([parts, [-t for t in parts]], seed=3, step=1, positions=cuts[:-1])
    assert torch.equal(torch.cat(results).cpu() > 0, expected[0])
    # Nothing depends on which other parameters have a gradient.
    alone = backend.graddrop([[None, ones[1], None], [None, -ones[1], None]], seed=3, step=1)
    assert alone[0] is alone[2] is None and torch.equal(alone[1].cpu() > 0, expected[1])


def test_signs_are_as_frequent_as_they_should_be() -> None:
    # P = 0.7; and over seeds and over steps, the numbers of an element differ.
    grads = [[torch.full((10_000,), 0.7)], [torch.full((10_000,), -0.3)]]
    share = (ops.graddrop(grads, seed=1)[0] > 0).double().mean().item()
    assert abs(share - 0.7) < 4 * (0.7 * 0.3 / 10_000) ** 0.5
    for changed in ({"seed": range(400)}, {"seed": [0], "step": range(400)}):
        rows = [[torch.full((1,), 0.7)], [torch.full((1,), -0.3)]]
        calls = [{"seed": s, "step": t} for s in changed["seed"] for t in changed.get("step", [0])]
        kept = sum(ops.graddrop(rows, **options)[0].item() > 0 for options in calls)
        assert abs(kept / 400 - 0.7) < 4 * (0.7 * 0.3 / 400) ** 0.5


# Values


@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8, 16, 33, 128, 130])
@pytest.mark.long_interpreted
def test_matches_float64(backend: Backend, tasks: int) -> None:
    if backend.interpreted and tasks > 33:
        pytest.skip("the interpreter is slow")
    shapes: list[Shape] = [(4096 // tasks + 3,), (3, 5), (), (0,), (2,)]
    if not backend.interpreted:
        shapes += [(65, 63), (20_011,)]
    grads = backend.normal(tasks, shapes)
    check(backend, grads)
    check(backend, grads, leak=0.25, step=5)
    check(backend, grads, seed=-3, leak=[(n % 5) / 4 for n in range(tasks)], step=9)


@pytest.mark.parametrize("tasks", [2, 9])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.long_interpreted
def test_dtypes(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    grads = backend.normal(tasks, [(1031,), (3, 5), (2,)], dtype)
    check(backend, grads)
    check(backend, [[offset(t, n % 3) for t in row] for n, row in enumerate(grads)], leak=[0.3] * tasks)
    mixed = [[g.to(d) for g, d in zip(row, [dtype, *FLOATS[:2]], strict=True)] for row in grads]
    check(backend, mixed, leak=0.5)


@pytest.mark.long_interpreted
def test_where_vectors_and_blocks_end(backend: Backend) -> None:
    sizes = MANY[:-9:4] if backend.interpreted else MANY
    grads = backend.integers(3, [(size,) for size in sizes])
    results = backend.graddrop(grads, seed=5)
    for column, result in zip(zip(*grads, strict=True), results, strict=True):
        g = torch.stack(column)  # exact, so one of the two sums must be found
        up, down = g.clamp(min=0).sum(0), g.clamp(max=0).sum(0)
        assert ((result == up) | (result == down)).all()


def test_none_is_a_task_that_does_not_touch_the_parameter(backend: Backend) -> None:
    grads = backend.normal(3, [(4, 3), (5,), (700,), (2,)])
    absent = {(0, 1), (1, 1), (0, 2), (0, 3), (1, 3), (2, 3)}
    grads = [[None if (n, i) in absent else g for i, g in enumerate(row)] for n, row in enumerate(grads)]
    results = check(backend, grads, leak=[0.1, 0.2, 0.3])
    assert results[1] is not None and torch.equal(results[1], grads[2][1])  # one task: kept
    assert backend.graddrop([[None], [None]], seed=0) == [None]


def test_one_sign_is_kept_and_zero_stays_zero(backend: Backend) -> None:
    # Also where the numbers are so small that their product with a random number is rounded.
    for value in (1.0, 2.0**-149, 1e-42, 2.0**-126, 3e38 / 3):
        for sign in (1, -1):
            grads = [[torch.full((300,), sign * value, device=backend.device)] for _ in range(3)]
            grads[2][0].zero_()
            expected = (2 * grads[0][0].double()).float()
            assert torch.equal(backend.graddrop(grads, seed=1)[0], expected), (value, sign)
    zeros = backend.rows(2, [(300,)], torch.zeros)
    assert not backend.graddrop(zeros, seed=1, leak=0.5)[0].any()


def test_a_leak_of_one_keeps_everything(backend: Backend) -> None:
    grads = backend.integers(3, [(300,)])
    assert torch.equal(backend.graddrop(grads, seed=1, leak=1)[0], sum(row[0] for row in grads))
    result = backend.graddrop(grads, seed=1, leak=[1, 0, 0])[0] - grads[0][0]
    dropped = backend.graddrop(grads, seed=1)[0]  # the same signs were chosen
    assert torch.equal(result, torch.where(dropped * grads[0][0] > 0, dropped - grads[0][0], dropped))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tasks", [2, 9])
def test_what_is_not_finite_shows_in_its_element_alone(backend: Backend, value: float, tasks: int) -> None:
    for place in (0, 17, 530):
        grads = backend.normal(tasks, [(5,), (531,)])
        grads[1][1][place] = value
        if value == 3e38:  # finite, but the sum of the sizes is not
            grads[0][1][place] = -value
        for leak in (0, 1):
            left, right = backend.graddrop(grads, seed=2, leak=leak)
            assert left.isfinite().all() and right.isnan().nonzero().tolist() == [[place]]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.long_interpreted
def test_layouts(backend: Backend, layout: Callable[[Tensor, int], Tensor]) -> None:
    grads = [[layout(a, n), b] for n, (a, b) in enumerate(backend.normal(3, [(5, 17, 11), (3,)]))]
    plain = [[a.contiguous().clone(), b] for a, b in grads]
    # The reference computes some of them, in float64, so the sums may differ in their last bits.
    results = check(backend, grads)
    for a, b in zip(results, backend.graddrop(plain, seed=7), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_results_are_written_into_out(backend: Backend) -> None:
    grads = backend.normal(3, [(70,), (3, 5)])
    out = [torch.full_like(g, float("nan")) for g in grads[0]]
    versions = [t._version for t in out]
    results = backend.graddrop(grads, seed=1, out=out)
    assert all(a is b for a, b in zip(results, out, strict=True)) and same(results, backend.graddrop(grads, seed=1))
    assert all(t._version > v for t, v in zip(out, versions, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_on_every_run_and_for_every_number_of_threads(backend: Backend, dtype: torch.dtype) -> None:
    if backend.interpreted:
        pytest.skip("the interpreter runs one program after the other")
    grads, threads, results = backend.normal(5, [(70_003,), (3,), (50, 77)], dtype), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(backend.graddrop(grads, seed=4, leak=0.1))
    finally:
        torch.set_num_threads(threads)
    assert all(same(results[0], other) for other in results[1:])


def test_agrees_with_torchjd_for_the_same_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 4001, generator=generator, dtype=torch.float64)
    leak = [0.0, 0.5, 1.0, 0.25, 0.0]
    for chosen in (None, leak):
        rule = aggregation.GradDrop(leak=None if chosen is None else torch.tensor(chosen, dtype=torch.float64))
        monkeypatch.setattr(torch, "rand", lambda *size, **options: uniforms(11, 2, 0, 4001))
        expected = rule(matrix)
        monkeypatch.undo()
        found = ops.graddrop([[row] for row in matrix], seed=11, step=2, leak=chosen or 0.0)[0]
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


# Wrong arguments


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "seed": ({"seed": 0.5}, TypeError, "seed must be an int, not float"),
    "seed is a bool": ({"seed": True}, TypeError, "seed must be an int, not bool"),
    "seed too large": ({"seed": 2**63}, ValueError, f"seed is {2**63}, but must be from -2^62 to 2^62"),
    "step negative": ({"step": -1}, ValueError, "step is -1, but must be from 0 to 2^62"),
    "leak": ({"leak": "0"}, TypeError, "leak must be a number, or one per task, not str"),
    "leaks": ({"leak": [0.5]}, ValueError, "leak has 1 entries, but there are 2 tasks"),
    "leak too large": ({"leak": [0, 1.5]}, ValueError, "leak[1] is 1.5, but must be from 0 to 1"),
    "leak nan": ({"leak": float("nan")}, ValueError, "leak[0] is nan, but must be from 0 to 1"),
    "leak none": ({"leak": [0, None]}, TypeError, "leak[1] must be a number, not NoneType"),
    "positions": ({"positions": [0]}, ValueError, "positions has 1 entries, but there are 2 parameters"),
    "position": ({"positions": [0, -4]}, ValueError, "positions[1] is -4, but must be from 0 to 2^62"),
    "position type": ({"positions": [0, 4.0]}, TypeError, "positions[1] must be an int, not float"),
    "out": ({"out": [torch.ones(2)]}, ValueError, "out has 1 entries, but there are 2 parameters"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=list(BAD))
def test_complaints(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        ops.graddrop(GOOD, **{"seed": 0} | options)
    assert "\n" not in str(caught.value)


# torch.library and torch.compile


def test_compiles_without_a_break_or_once_for_all_steps(backend: Backend) -> None:
    def call(grads: Grads, seed: int, step: int) -> Any:
        doubled = [[None if g is None else 2 * g for g in row] for row in grads]
        return [t + 1 for t in backend.graddrop(doubled, seed=seed, step=step, leak=[0.5, 0.0])]

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    grads = backend.normal(2, [(40,), (3, 5)])
    grads[1][1] = None
    for seed, step in ((5, 2), (5, 3), (5, 4), (5, 5)):
        assert same(compiled(grads, seed, step), call(grads, seed, step))
    assert counter.frame_count <= 2  # once for the first step, once for all others
