"""What only the reference promises: sums in float64, blocks of bounded size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cats import ops
from cats.ops.backends import reference
from cats.ops.interface import AdamW

Grads = list[list[Any]]  # of tensors and None


def random_grads(tasks: int, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 0) -> Grads:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(tasks)]


def check(grads: Grads, weights: list[float]) -> None:
    """All operators against sums over the flat gradients in float64."""
    flat = torch.stack([torch.cat([g.double().flatten() for g in row]) for row in grads])
    w = torch.tensor([weights], dtype=torch.float64)
    expected, groups = w @ flat, [0] * len(grads[0])
    out = [torch.empty_like(g) for g in grads[0]]
    dots, sqnorms = reference.combine_dots(grads, [out], groups, w)
    again = [torch.empty_like(g) for g in grads[0]]
    reference.combine(grads, [again], groups, w)
    assert all(torch.equal(x, y) for x, y in zip(out, again, strict=True))
    # Rounded once: half a unit in the last place. atol is for float64's own roundings, here and below.
    torch.testing.assert_close(torch.cat([t.flatten() for t in out]).double(), expected[0], rtol=2.0**-24, atol=1e-12)
    close = {"rtol": 1e-13, "atol": 1e-13 * flat.square().sum(1).max().item()}
    torch.testing.assert_close(dots[0], expected @ flat.T, **close)
    torch.testing.assert_close(sqnorms[0], flat.square().sum(1), **close)
    torch.testing.assert_close(reference.gram(grads, [], groups)[0][0], flat @ flat.T, **close)
    torch.testing.assert_close(reference.dots(grads, [grads[0]], groups)[0][0], flat @ flat[0], **close)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every second": lambda t: torch.stack([t, t], -1)[..., 0],
    "rows far apart": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
}


def check_alike(left: Grads, right: Grads) -> None:
    """The same numbers in other layouts: another partition, another order of float64 additions."""
    groups = [0] * len(left[0])
    torch.testing.assert_close(
        reference.gram(left, [], groups), reference.gram(right, [], groups), rtol=1e-13, atol=1e-9
    )
    weights = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    results = []
    for grads in left, right:
        out = [torch.empty(g.shape) for g in grads[0]]
        results.append((out, *reference.combine_dots(grads, [out], groups, weights)))
    assert all(torch.equal(x, y) for x, y in zip(results[0][0], results[1][0], strict=True))
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-13, atol=1e-9)


@pytest.mark.parametrize("tasks", [1, 2, 8, 33, 128])
def test_sums_are_float64(tasks: int) -> None:
    check(random_grads(tasks, [(501,), (3, 5), ()]), [1 - n / 40 for n in range(tasks)])


@pytest.mark.parametrize("size", [2**14 - 1, 2**14, 2**14 + 1, 2**15, 2**15 + 1])
def test_where_blocks_end(size: int) -> None:
    # The last elements are large, so a block that is lost or counted twice changes the sums.
    for shapes in ([(size,)], [(size,), (2,), (size - 2,)], [(3, size)]):
        grads = random_grads(2, shapes)
        grads[0][-1].view(-1)[-1:].mul_(1e3)
        check(grads, [0.5, 2.0])
        for layout in LAYOUTS.values():
            changed = [[layout(t) if t.dim() == 2 else t for t in row] for row in grads]
            check_alike(changed, grads)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("shape", [(40, 1000), (2, 20_001), (20_001, 2)])
def test_tensors_cut_into_boxes(layout: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    grads = random_grads(2, [shape, (3,)])
    check_alike([[layout(a), b] for a, b in grads], grads)
    out = [layout(torch.zeros(shape)), torch.zeros(3)]
    expected = [torch.zeros(shape), torch.zeros(3)]
    weights = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    reference.combine(grads, [out], [0, 0], weights)
    reference.combine(grads, [expected], [0, 0], weights)
    assert all(torch.equal(x, y) for x, y in zip(out, expected, strict=True))


def test_rows_of_weights_have_the_bits_of_single_ones() -> None:
    grads, groups = random_grads(3, [(3, 5), (20_001,), ()]), [0, 0, 0]
    weights = torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5], [-1, 1, 3]], dtype=torch.float64)
    outs = [[torch.empty_like(g) for g in grads[0]] for _ in range(4)]
    dots, sqnorms = reference.combine_dots(grads, outs[:3], groups, weights)
    for r in range(3):
        single, single_sqnorms = reference.combine_dots(grads, outs[3:], groups, weights[r : r + 1])
        assert all(torch.equal(x, y) for x, y in zip(outs[r], outs[3], strict=True))
        assert torch.equal(dots[:, r], single[:, 0]) and torch.equal(sqnorms, single_sqnorms)


def test_expanded_gradients_take_no_memory() -> None:
    # In its own process, so that the peak memory is the operators'. Copied, 2^25 elements would take 128 MiB.
    code = """
import resource, torch
from cats import ops
from cats.ops.backends import reference
def rows(shape): return [[torch.full((1,), float(n)).expand(shape)] for n in (1, 2)]
reference.gram(rows((1 << 16,)), [], [0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shape in ((1 << 25,), (2, 1 << 24)):
    assert reference.gram(rows(shape), [], [0])[0].tolist() == [[[2.0**25, 2.0**26], [2.0**26, 2.0**27]]]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert grown < 64


@pytest.mark.parametrize(
    ("tasks", "size", "dtype"),
    [
        (2, 2_000_000, "float32"),
        pytest.param(2, 2_000_000, "float64", marks=pytest.mark.slow),
        pytest.param(1, 5_000_000, "float32", marks=pytest.mark.slow),
        pytest.param(64, 200_000, "float32", marks=pytest.mark.slow),
        pytest.param(200, 60_000, "float32", marks=pytest.mark.slow),
        pytest.param(200, 60_000, "float64", marks=pytest.mark.slow),
    ],
)
def test_the_long_blocks_of_a_gpu_take_less_than_64_MB(tasks: int, size: int, dtype: str) -> None:
    # In its own process, so that the peak memory is the operators'. malloc gives freed blocks back at once, as a GPU's
    # allocator does: kept ones would count, too.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    code = f"""
import resource, torch
from cats import ops
from cats.ops.backends import reference
reference._CPU_COLUMNS = 1 << 40
torch.set_default_dtype(torch.{dtype})
def run(tasks, size, combinations):
    grads = [[torch.full((size,), float(n))] for n in range(tasks)]
    out = [[torch.ones(size)] for _ in range(combinations)]
    others = [[torch.ones(size)] for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ops.combine(grads, torch.ones(combinations, tasks), out=out, backend="reference")
    ops.combine_dots(grads, torch.ones(combinations, tasks), out=out, backend="reference")
    ops.dots(grads, others[0], backend="reference")
    ops.gram(grads, backend="reference")
    ops.graddrop(grads, seed=1, out=out[0], backend="reference")
    one = torch.ones(1)
    ops.combine_adamw_(others[0], grads, [1.0] * tasks, *others[1:], step=1, lr=0.1, beta1=0.9, beta2=0.98, eps=1e-8,
                       weight_decay=0.0, found_inf=one - 1, grad_scale=one, backend="reference")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
run(2, 10_000, 2)
print(run({tasks}, {size}, min(8, {tasks})) * 1024)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 64e6


def test_adamw_of_bfloat16_parameters_is_that_of_float32_rounded_once() -> None:
    # Bit for bit: the operations and their order are those of torch.optim.AdamW with foreach=False.
    shapes: list[tuple[int, ...]] = [(30, 700), (5,), ()]
    params = random_grads(1, shapes, torch.bfloat16, seed=9)[0]
    exp_avgs, exp_avg_sqs = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
    leaves = [p.float().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, foreach=False)
    weights, lr = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64), torch.tensor(1e-2, dtype=torch.float64)
    for step in range(1, 6):
        grads = random_grads(3, shapes, torch.bfloat16, seed=step)
        wide = [torch.empty(shape) for shape in shapes]
        statistics = reference.combine_dots([[g.float() for g in row] for row in grads], [wide], [0, 1, 0], weights)
        for leaf, grad in zip(leaves, wide, strict=True):
            leaf.grad = grad
        optimizer.step()
        settings = AdamW(torch.tensor(float(step)), lr, 0.9, 0.98, 1e-8, 0.1, None, None)
        found = reference.combine_adamw_(grads, [params, exp_avgs, exp_avg_sqs], [0, 1, 0], weights, settings)
        assert torch.equal(found[0], statistics[0]) and torch.equal(found[1], statistics[1])
        for leaf, param in zip(leaves, params, strict=True):
            assert torch.equal(param, leaf.detach().bfloat16())
            leaf.data.copy_(param)


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    # Weights and leaks of the host's memory, which may be free before the graph runs.
    grads = [[g.cuda() for g in row] for row in random_grads(3, [(1000,), (20, 7)])]

    def call() -> list[Tensor]:
        combined, dots, sqnorms = ops.combine_dots(grads, [0.5, 0.25, 0.125], backend="reference")
        signs = ops.graddrop(grads, seed=1, leak=[0.25, 0.0, 0.5], backend="reference")
        return [*combined, dots, sqnorms, *signs]

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for factor in (1, 2):
        torch._foreach_mul_([g for row in grads for g in row], factor)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, call(), strict=True))


def test_numbers_of_the_host_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a GPU: the device is one without data, and the numbers that were written to it are recorded.
    written, full = [], torch.full

    def record(size: Any, value: float, *, dtype: torch.dtype, device: Any) -> Tensor:
        assert torch.device(device).type == "cuda"
        written.append(value)
        return full(size, value, dtype=dtype)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "full", record)
    numbers = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    assert torch.equal(reference._on_device(numbers, torch.device("cuda")), numbers)
    assert written == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("tasks", [2, 9])
def test_blocks_are_powers_of_two(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the long ones of a GPU. So a list of tensors gives the bits of its flat view, if they have such sizes."""
    monkeypatch.setattr(reference, "_CPU_COLUMNS", 1 << 40)
    grads = [[torch.ones(3 << 18)] for _ in range(tasks)]
    for vectors in (reference._VECTORS, reference._ADAMW_VECTORS, reference._GRADDROP_VECTORS):
        first, *_ = (block.matrix.shape[1] for block in reference._blocks(grads, [0], (), vectors))
        assert first == 3 << 18 or first & (first - 1) == 0
