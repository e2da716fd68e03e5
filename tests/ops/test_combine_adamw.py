"""combine_adamw_ with every backend, against torch.optim.AdamW and numbers computed by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.ops.common import (
    ADAMW,
    FLOATS,
    LAYOUTS,
    MANY,
    PARAMS,
    SHORT,
    STATISTICS,
    Backend,
    Shape,
    State,
    close,
    stack,
    task_grads,
)


@pytest.mark.parametrize(
    ("dtype", "tasks"), [(torch.float32, 1), (torch.float32, 3), (torch.float32, 33), (torch.float64, 3)], ids=str
)
@pytest.mark.long_interpreted
def test_adamw_is_torchs_on_the_combined_gradient(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    weights = torch.rand(tasks, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(0)
    state = State(backend, dtype)
    leaves = [p.clone().requires_grad_() for p in state.params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, foreach=False)
    for step in range(1, 3 if backend.interpreted else 6):
        grads = task_grads(backend, tasks, dtype, seed=step)
        combined, *expected = backend.combine_dots(grads, weights)
        for leaf, grad in zip(leaves, combined, strict=True):
            leaf.grad = grad
        optimizer.step()
        # The statistics of both are within their bound, which is relative to the norms.
        tolerance = {"rtol": 0.0, "atol": 4 * STATISTICS * expected[1].max().item()}
        torch.testing.assert_close(list(state.update(grads, weights, step=step)), expected, **tolerance)
    # The same operations in an order that may differ: a few units in the last place of numbers below 4.
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    for leaf, param, avg, square in zip(leaves, state.params, state.exp_avgs, state.exp_avg_sqs, strict=True):
        torch.testing.assert_close(param, leaf.detach(), **tolerance)
        if leaf.grad is not None:
            torch.testing.assert_close(avg, optimizer.state[leaf]["exp_avg"], **tolerance)
            torch.testing.assert_close(square, optimizer.state[leaf]["exp_avg_sq"], **tolerance)
    assert torch.equal(state.params[-1], State(backend, dtype).params[-1])
    assert not state.exp_avgs[-1].any() and not state.exp_avg_sqs[-1].any()


@pytest.mark.parametrize("tasks", [3, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.long_interpreted
def test_adamw_of_short_parameters_rounds_once(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    weights = torch.linspace(-0.2, 1, tasks, dtype=torch.float64)
    state = State(backend, dtype)
    leaves = [p.float().requires_grad_() for p in state.params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, foreach=False)
    for step in range(1, 3 if backend.interpreted else 6):
        grads = task_grads(backend, tasks, dtype, seed=step)
        for leaf, g in zip(leaves, stack(grads), strict=True):
            leaf.grad = None if g is None else (weights @ g).float().view(leaf.shape).to(backend.device)
        optimizer.step()
        state.update(grads, weights, step=step)
        for leaf, param, avg in zip(leaves, state.params, state.exp_avgs, strict=True):
            wide = leaf.detach().double()
            # Half the distance between two numbers of this dtype, and float32's rounding errors.
            half = torch.finfo(dtype).eps * torch.exp2(torch.frexp(wide).exponent - 2.0)
            close(param, wide.cpu(), (half + SHORT[dtype][1] + 2e-6 * wide.abs()).cpu(), f"parameters, step {step}")
            leaf.data.copy_(param)
            if leaf.grad is not None:  # with rounded gradients, a moment would have a relative error of 1e-3
                torch.testing.assert_close(avg, optimizer.state[leaf]["exp_avg"], rtol=1e-5, atol=1e-5)


def test_adamw_where_vectors_and_blocks_end(backend: Backend) -> None:
    sizes = [1, 17, 4097] if backend.interpreted else MANY
    shapes: list[Shape] = [(size,) for size in sizes]
    grads, state = backend.integers(2, shapes), State(backend, shapes=shapes)
    expected = state.copies()[: len(sizes)]
    dots, sqnorms = state.update(grads, [1.0, 0.25], groups=range(len(sizes)))
    for i, g in enumerate(stack(grads)):
        assert g is not None
        combined = g[0] + 0.25 * g[1]  # never 0. In the first step only its sign matters.
        figures = expected[i].cpu().double() * (1 - 1e-3) - 1e-2 * combined.sign()
        torch.testing.assert_close(state.params[i].cpu().double(), figures, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(state.exp_avgs[i].cpu().double(), 0.1 * combined, rtol=1e-6, atol=0)
        torch.testing.assert_close(state.exp_avg_sqs[i].cpu().double(), 0.02 * combined**2, rtol=1e-6, atol=0)
        assert torch.equal(dots[i].cpu(), g @ combined) and torch.equal(sqnorms[i].cpu(), g.square().sum(1))


def test_adamw_in_figures(backend: Backend) -> None:
    # By hand: m = 0.1 g, v = 0.02 g^2. After bias correction the step is lr g / |g|. Weight decay is first, not in m.
    state = State(backend, shapes=[(2,)])
    state.params[0].copy_(torch.tensor([2.0, -4.0]))
    grads = [[torch.tensor([1.0, -3.0], device=backend.device)], [torch.tensor([3.0, 1.0], device=backend.device)]]
    dots, sqnorms = state.update(grads, [0.5, 0.5], lr=0.25, weight_decay=0.5)
    assert dots.tolist() == [5.0, 5.0] and sqnorms.tolist() == [10.0, 10.0]
    expected = [[2.0 * 0.875 - 0.25, -4.0 * 0.875 + 0.25], [0.2, -0.1], [0.08, 0.02]]
    for got, figures in zip(state.tensors, expected, strict=True):
        torch.testing.assert_close(got.cpu(), torch.tensor(figures), rtol=1e-6, atol=0)


@pytest.mark.long_interpreted
def test_adamw_takes_tensors_for_step_and_lr(backend: Backend) -> None:
    grads, weights = task_grads(backend, 3), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    plain = State(backend)
    for step in (1, 2):
        plain.update(grads, weights, step=step)
    for device, dtype in itertools.product({"cpu", backend.device.type}, (torch.float32, torch.float64)):
        state = State(backend)
        for step in (1, 2):
            lr = torch.tensor([ADAMW["lr"]], dtype=torch.float64, device=device)
            state.update(grads, weights.to(device), step=torch.tensor(float(step), dtype=dtype, device=device), lr=lr)
        assert all(torch.equal(x, y) for x, y in zip(plain.tensors, state.tensors, strict=True))


@pytest.mark.long_interpreted
def test_adamw_found_inf_leaves_everything_as_it_was(backend: Backend) -> None:
    for dtype in torch.float32, torch.bfloat16:
        state, grads = State(backend, dtype), task_grads(backend, 3, dtype)
        state.update(grads, [0.2, 0.3, 0.5])
        before = state.copies()
        grads[2][0][2, 3] = float("inf")
        one = torch.ones(1, device=backend.device)
        _, sqnorms = state.update(grads, [0.2, 0.3, 0.5], step=2, found_inf=one)
        assert sqnorms.isfinite().tolist() == [True, True, False]
        assert all(torch.equal(x, y) for x, y in zip(before, state.tensors, strict=True))
        state.update(task_grads(backend, 3, dtype), [0.2, 0.3, 0.5], step=2, found_inf=one * 0)
        for old, new in zip(before[:: len(PARAMS)], state.tensors[:: len(PARAMS)], strict=True):
            assert not torch.equal(old, new)


def test_adamw_divides_the_gradient_by_grad_scale(backend: Backend) -> None:
    scaled, plain, grads = State(backend), State(backend), task_grads(backend, 3)
    large = [[None if g is None else g * 1024 for g in row] for row in grads]
    scale = torch.tensor(1024.0, device=backend.device)
    dots, sqnorms = scaled.update(large, [0.2, 0.3, 0.5], grad_scale=scale)
    expected = plain.update(grads, [0.2, 0.3, 0.5])
    assert all(torch.equal(x, y) for x, y in zip(scaled.tensors, plain.tensors, strict=True))
    # The statistics are those of the gradients as given.
    assert torch.equal(dots, expected[0] * 1024**2) and torch.equal(sqnorms, expected[1] * 1024**2)


def test_adamw_of_what_is_not_finite(backend: Backend) -> None:
    state, grads = State(backend), task_grads(backend, 3)
    grads[1][0][1, 100] = float("nan")
    _, sqnorms = state.update(grads, [0.2, 0.0, 0.8])
    assert sqnorms.isfinite().tolist() == [True, False, True]
    for tensors in state.params, state.exp_avgs, state.exp_avg_sqs:
        assert tensors[0].isnan().nonzero().tolist() == [[1, 100]]
        assert all(t.isfinite().all() for t in tensors[1:])


def test_adamw_without_any_gradient(backend: Backend) -> None:
    state = State(backend)
    before = state.copies()
    dots, sqnorms = state.update([[None] * len(PARAMS)] * 2, [0.5, 0.5], groups=[0, 1, 0, 1, 0, 1])
    assert dots.tolist() == sqnorms.tolist() == [[0.0] * 2] * 2
    assert all(torch.equal(x, y) for x, y in zip(before, state.tensors, strict=True))


@pytest.mark.parametrize("layout", ["transposed", "rows with gaps", "every second", "misaligned"])
@pytest.mark.parametrize("which", ["params", "exp_avgs", "exp_avg_sqs", "grads", "all"])
def test_adamw_layouts(backend: Backend, layout: str, which: str) -> None:
    # Next to the parameter with this layout, a dense one in its own group.
    shapes: list[Shape] = [(30, 41), (9,)]
    grads, change = backend.normal(2, shapes), LAYOUTS[layout]
    state, other = State(backend, shapes=shapes), State(backend, shapes=shapes)
    expected = other.update(grads, [0.25, 0.75], groups=[1, 0])
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        if which in (name, "all"):
            tensors = getattr(state, name)
            tensors[0] = change(tensors[0], 0)
    if which in ("grads", "all"):
        grads = [[change(a, n), b] for n, (a, b) in enumerate(grads)]
    statistics = state.update(grads, [0.25, 0.75], groups=[1, 0])
    for x, y in zip(state.tensors, other.tensors, strict=True):
        torch.testing.assert_close(x, y, rtol=4 * 2.0**-23, atol=4 * 2.0**-23)
    for x, y, *_ in zip(statistics, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=STATISTICS * expected[1].max().item())


@pytest.mark.long_interpreted
def test_adamw_of_parameters_of_different_dtypes(backend: Backend) -> None:
    shapes: list[Shape] = [(100 + i, 3) for i in range(2 * len(FLOATS))]
    order = [*FLOATS, *reversed(FLOATS)]
    grads = [[g.to(dtype) for g, dtype in zip(row, order, strict=True)] for row in backend.integers(2, shapes)]
    states = [State(backend, dtype, [shape]) for shape, dtype in zip(shapes, order, strict=True)]
    together = State(backend, shapes=[])
    for state in states:
        together.params += [t.clone() for t in state.params]
        together.exp_avgs += [t.clone() for t in state.exp_avgs]
        together.exp_avg_sqs += [t.clone() for t in state.exp_avg_sqs]
    dots, sqnorms = together.update(grads, [1.0, 0.5], groups=range(len(order)))
    for i, state in enumerate(states):
        alone = state.update([[row[i]] for row in grads], [1.0, 0.5])
        assert torch.equal(dots[i], alone[0]) and torch.equal(sqnorms[i], alone[1])
        for tensors, single in zip(
            (together.params, together.exp_avgs, together.exp_avg_sqs), state.tensors, strict=True
        ):
            assert torch.equal(tensors[i], single)
