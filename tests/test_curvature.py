"""Curvature and alignment of tasks, compared with dense Hessians and with gradients taken one by one."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cats
from cats import curvature


class Net(nn.Module):
    """A net with dropout, which must be off; 27 parameters in two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Linear(3, 5)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 1, bias=False)
        self.double()
        self.inputs = {task: torch.randn(8, 3, dtype=torch.float64) for task in ("a", "b")}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.body(x)))).squeeze(1)

    def loss(self, task: str) -> Tensor:
        x = self.inputs[task]
        return ((self(x) - x[:, 0] * x[:, 1] * (3 if task == "a" else -1)) ** 2).mean()


def losses_of(net: Net) -> dict[str, Callable[[], Tensor]]:
    return {task: lambda task=task: net.loss(task) for task in net.inputs}  # type: ignore[misc]


def dense_hessian(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """The (P, P) Hessian of a float64 model in evaluation mode, by central differences of gradients.

    Their error is about 1e-9: rounding errors of 1e-16 are divided by the step, and its square is 1e-10.
    """
    params, step = list(model.parameters()), 1e-5
    model.eval()

    def gradient() -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(), params)])

    rows = []
    for p in params:
        for i in range(p.numel()):
            ends = []
            for move in (step, -2 * step, step):
                p.detach().view(-1)[i] += move
                ends.append(gradient())
            rows.append((ends[0] - ends[1]) / (2 * step))
    model.train()
    hessian = torch.stack(rows)
    return (hessian + hessian.T) / 2


class Quadratic(nn.Module):
    """½ Σ d_i x_i² + c·x for given d and c, at x = 1. Its Hessian is diag(d)."""

    def __init__(self, *d: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(len(d), dtype=torch.float64))
        self.d = torch.tensor(d, dtype=torch.float64)

    def loss(self, c: float = 0.0) -> Tensor:
        return (0.5 * self.d * self.x**2 + c * self.x).sum()


def test_eigenvalues_and_trace_of_a_dense_hessian() -> None:
    net = Net()
    for task, loss in losses_of(net).items():
        hessian = dense_hessian(net, loss)
        exact = torch.linalg.eigvalsh(hessian)
        size = float(exact.abs().max())
        found = curvature.eigenvalues(loss, net, tolerance=1e-9)
        assert found.smallest < 0 < found.largest and found.error <= 1e-9 * size, task
        # The tolerance is that of the dense Hessian.
        assert (found.largest, found.smallest) == pytest.approx((float(exact[-1]), float(exact[0])), abs=1e-7 * size)
        rough = curvature.eigenvalues(loss, net, tolerance=0.02)
        assert rough.products < found.products and rough.error <= 0.02 * size
        assert min(abs(exact - rough.largest)) <= rough.error and min(abs(exact - rough.smallest)) <= rough.error

    samples = 100
    estimate = curvature.trace(loss, net, samples=samples)
    assert abs(estimate.value - float(hessian.trace())) <= 4 * estimate.error
    # The variance of one sample is twice the sum of the squares beside the diagonal.
    sd = math.sqrt(2 * float((hessian - hessian.diag().diag()).square().sum()))
    assert estimate.error * math.sqrt(samples) == pytest.approx(sd, rel=0.3)  # 4 standard errors of a deviation of 100


def test_lanczos_needs_fewer_products_than_power_iteration() -> None:
    """The two largest eigenvalues are close, which makes power iteration slow."""
    model = Quadratic(*torch.linspace(-3, 9, 200).tolist(), 10.0)
    found = curvature.eigenvalues(model.loss, model, tolerance=0.01)
    vector, count = torch.randn(201, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0
    while abs(float(vector @ (model.d * vector) / (vector @ vector)) - 10) > 0.01 * 10:
        vector, count = model.d * vector, count + 1
        vector /= vector.norm()
    assert abs(found.top - 10) <= 0.1 and found.products < count


def test_sign() -> None:
    negative = Quadratic(-5.0, 3.0, 1.0)
    found = curvature.eigenvalues(negative.loss, negative, tolerance=1e-9)
    assert (found.top, found.largest, found.smallest) == pytest.approx((-5.0, 3.0, -5.0))
    positive = Quadratic(5.0, -3.0)
    assert curvature.eigenvalues(positive.loss, positive, tolerance=1e-9).top == pytest.approx(5.0)
    concave = Quadratic(-1.0, -2.0)
    found = curvature.eigenvalues(concave.loss, concave, tolerance=1e-9)
    assert (found.top, found.largest) == pytest.approx((-2.0, -1.0))
    # Of a diagonal Hessian, each sample gives the trace.
    trace = curvature.trace(negative.loss, negative)
    assert (trace.value, trace.error) == pytest.approx((-1.0, 0.0))


def test_no_curvature() -> None:
    flat = Quadratic(0.0, 0.0)
    linear: Callable[[], Tensor] = lambda: flat.x.sum()  # noqa: E731
    for loss in (flat.loss, linear):
        found = curvature.eigenvalues(loss, flat)
        assert (found.largest, found.smallest, found.products) == (0.0, 0.0, 1)
        assert curvature.trace(loss, flat) == curvature.Trace(0.0, 0.0)


def test_several_callables_are_a_sum() -> None:
    net = Net()
    parts = list(losses_of(net).values())
    whole: Callable[[], Tensor] = lambda: parts[0]() + parts[1]()  # noqa: E731
    one, several = (curvature.eigenvalues(loss, net, tolerance=1e-9) for loss in (whole, parts))
    assert several.largest == pytest.approx(one.largest, rel=1e-9)
    assert curvature.trace(parts, net).value == pytest.approx(curvature.trace(whole, net).value, rel=1e-9)
    losses: dict[str, curvature.Loss] = {"whole": whole, "parts": parts, "a": parts[0]}
    found = curvature.similarities(losses, net)["all"]
    assert float(found.cosine[0, 1]) == pytest.approx(1.0) and torch.equal(found.cosine[0, 2], found.cosine[2, 0])
    change = curvature.interference(losses, net, lr=0.1)
    torch.testing.assert_close(change[0], change[1])
    torch.testing.assert_close(change[:, 0], change[:, 1])


def test_similarities_per_group() -> None:
    net = Net()
    losses = losses_of(net)
    found = curvature.similarities(losses, net, group_of=lambda name: name.split(".")[0])
    assert list(found) == ["all", "body", "head"]
    net.eval()
    grads = {task: torch.autograd.grad(loss(), list(net.parameters())) for task, loss in losses.items()}
    for group, chosen in {"all": slice(None), "body": slice(0, 2), "head": slice(2, 3)}.items():
        a, b = (torch.cat([g.flatten() for g in grads[task][chosen]]) for task in ("a", "b"))
        similarity = found[group]
        torch.testing.assert_close(similarity.norms, torch.stack([a.norm(), b.norm()]))
        assert float(similarity.cosine[0, 1]) == pytest.approx(float(F.cosine_similarity(a, b, dim=0)))
        expected = 2 * a.norm() * b.norm() / (a.norm() ** 2 + b.norm() ** 2)
        assert float(similarity.magnitude[0, 1]) == pytest.approx(float(expected))
        for matrix in (similarity.cosine, similarity.magnitude):
            assert torch.equal(matrix, matrix.T) and matrix.diagonal().tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("at_once", "expected"), [(32, 7), (4, 4), (2, 2)])
def test_no_more_gradients_than_wanted_are_in_memory(
    at_once: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are the same as from all gradients at once."""
    net, gradient = Net(), curvature._gradient
    losses = {f"t{i}": lambda i=i: ((net(net.inputs["a"] + i) - i) ** 2).mean() for i in range(7)}
    all_at_once = curvature.similarities(losses, net, group_of=lambda name: name.split(".")[0])
    made: list[weakref.ref[Tensor]] = []
    alive = []

    def counted(*arguments: Any) -> Any:
        found = gradient(*arguments)
        made.append(weakref.ref(found[0]))
        alive.append(sum(reference() is not None for reference in made))
        return found

    monkeypatch.setattr(curvature, "_gradient", counted)
    found = curvature.similarities(losses, net, group_of=lambda name: name.split(".")[0], at_once=at_once)
    assert max(alive) == expected
    for group, similarity in all_at_once.items():
        torch.testing.assert_close(vars(found[group]), vars(similarity), rtol=1e-12, atol=1e-12)  # float64 sums


def test_gradients_that_are_zero_or_absent() -> None:
    net = Net()
    losses: dict[str, curvature.Loss] = {
        "a": losses_of(net)["a"],
        "zero": lambda: 0 * net.loss("b"),
        "none": lambda: 0 * net.body.weight.sum(),  # does not touch the head
    }
    found = curvature.similarities(losses, net, group_of=lambda name: name.split(".")[0])
    for similarity in found.values():
        assert similarity.norms[1:].tolist() == [0.0, 0.0]
        assert similarity.cosine[1:].isnan().all() and similarity.cosine[:, 1:].isnan().all()
        assert similarity.magnitude[0].tolist() == [1.0, 0.0, 0.0] and similarity.magnitude[1:, 1:].isnan().all()
    assert curvature.interference(losses, net, lr=0.1)[:, 1:].tolist() == [[0.0, 0.0]] * 3


def test_interference_of_quadratic_losses() -> None:
    """I = -lr <g_i, g_j> + lr²/2 g_jᵀ H g_j, without a remainder."""
    model = Quadratic(4.0, -1.0)
    slopes = {"a": 1.0, "b": -2.0}
    losses = {task: lambda c=c: model.loss(c) for task, c in slopes.items()}
    grads = torch.stack([model.d + c for c in slopes.values()])
    expected = -0.1 * grads @ grads.T + 0.005 * (grads**2 @ model.d)[None]
    torch.testing.assert_close(curvature.interference(losses, model, lr=0.1), expected)
    # At a minimum of its loss, only the term with the curvature is left, which Eq. 1 of the paper bounds.
    minimum = Quadratic(4.0, 1.0)
    least: dict[str, curvature.Loss] = {
        "at its minimum": lambda: minimum.loss(0.0) - (minimum.d * minimum.x).sum(),
        "other": lambda: minimum.x.sum(),
    }
    change = float(curvature.interference(least, minimum, lr=0.1)[0, 1])
    top = curvature.eigenvalues(least["at its minimum"], minimum, tolerance=1e-9).top
    assert change == pytest.approx(0.005 * 5) and 0 < change <= 0.005 * top * 2


def test_attention_and_embeddings() -> None:
    """Fused attention has no second derivative, so the math kernels must be chosen. Also in float32, as trained."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.mix = nn.Embedding(5, 4), nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
            self.ids = torch.tensor([[0, 1, 2], [3, 4, 1]])

        def loss(self) -> Tensor:
            x = self.table(self.ids)
            heads = x.unflatten(-1, (2, 2)).transpose(1, 2)
            direct = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
            return (self.mix(x, x, x, need_weights=False)[0] ** 2).sum() + (direct**3).sum()

    model = Attention()
    exact = torch.linalg.eigvalsh(dense_hessian(model.double(), model.loss))
    for tolerance, dtype in ((1e-6, torch.float64), (1e-3, torch.float32)):
        model.to(dtype)
        found = curvature.eigenvalues(model.loss, model, tolerance=tolerance)
        ends = float(exact[-1]), float(exact[0])
        assert (found.largest, found.smallest) == pytest.approx(ends, abs=2 * tolerance * max(map(abs, ends)))


def test_sparse_embeddings() -> None:
    """The second derivatives of an embedding with sparse gradients are sparse, too."""
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Tanh(), nn.Linear(3, 1))

        def loss(model: nn.Module = model) -> Tensor:
            return (model(torch.tensor([0, 1, 1])) ** 3).sum()

        found.append((curvature.eigenvalues(loss, model), curvature.trace(loss, model)))
    assert found[0] == found[1] and found[0][0].smallest < -1


def test_compiled_models() -> None:
    """Compiled code cannot be differentiated twice, so the model runs without it."""
    net = Net()
    losses = losses_of(net)
    expected = curvature.eigenvalues(losses["a"], net)
    net.compile(backend="aot_eager")
    net.eval()
    gradient = torch.autograd.grad(losses["a"](), list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(gradient[0].sum(), list(net.parameters()))
    assert curvature.eigenvalues(losses["a"], net) == expected


def test_nothing_is_changed() -> None:
    net = Net()
    net.train()
    net.body.eval()
    (net.loss("a")).backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in net.named_parameters() if p.grad is not None}
    state, modes = torch.get_rng_state(), [module.training for module in net.modules()]
    losses = losses_of(net)

    def bad() -> Tensor:
        assert not net.drop.training
        raise KeyError("stop")

    results = []
    for _ in range(2):
        results.append(
            [
                curvature.eigenvalues(losses["a"], net),
                curvature.trace(losses["a"], net),
                curvature.interference(losses, net, lr=0.1).tolist(),
                curvature.similarities(losses, net)["all"].cosine.tolist(),
            ]
        )
        with pytest.raises(KeyError):
            curvature.interference({"a": losses["a"], "bad": bad}, net, lr=0.1)
    assert results[0] == results[1]
    assert curvature.trace(losses["a"], net, seed=1) != results[0][1]
    assert [module.training for module in net.modules()] == modes and len(before) == 3
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name][0]) and p.grad is not None and torch.equal(p.grad, before[name][1])


def test_parameters_are_put_back_if_a_loss_fails_after_the_step() -> None:
    model = Quadratic(1.0, 2.0)
    calls = 0

    def failing() -> Tensor:
        nonlocal calls
        calls += 1
        return model.loss() * (math.nan if calls > 2 else 1)  # the third call is after the step

    with pytest.raises(cats.NonFiniteError, match="a: the loss is nan"):
        curvature.interference({"a": failing}, model, lr=0.5)
    assert model.x.tolist() == [1.0, 1.0]


def test_what_is_not_finite_is_refused() -> None:
    model = Quadratic(1.0, 2.0)
    nan: Callable[[], Tensor] = lambda: model.loss() * math.nan  # noqa: E731
    steep: Callable[[], Tensor] = lambda: (model.x - 1).abs().sqrt().sum()  # noqa: E731  # finite, but not its slope
    for measure in (
        lambda loss: curvature.eigenvalues(loss, model),
        lambda loss: curvature.trace(loss, model),
        lambda loss: curvature.similarities({"a": loss}, model),
        lambda loss: curvature.interference({"a": loss}, model, lr=0.1),
    ):
        for loss in (nan, steep):
            with pytest.raises(cats.NonFiniteError, match=r"not finite|is nan"):
                measure(loss)
    with pytest.raises(cats.NonFiniteError, match=r"^b: the gradient is not finite$"):
        curvature.similarities({"a": model.loss, "b": steep}, model)


class Merging(nn.Module):
    """As LoRA layers do: a product is part of the weight in evaluation, and has its own parameters in training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.a, self.b = nn.Parameter(torch.ones(2, 1)), nn.Parameter(torch.ones(1, 2))
        self.merged = False

    def train(self, mode: bool = True) -> nn.Module:
        if self.merged == mode:
            with torch.no_grad():
                self.weight += (-1 if mode else 1) * self.a @ self.b
            self.merged = not mode
        return super().train(mode)

    def forward(self) -> Tensor:
        return (self.weight if self.merged else self.weight + self.a @ self.b).square().sum()


def test_layers_that_do_more_in_train_are_as_before() -> None:
    layer = Merging()
    model = nn.Sequential(layer, nn.Linear(2, 2)).train()
    model[1].eval()
    curvature.trace(lambda: layer() + model[1].weight.square().sum(), model, samples=2)
    assert layer.training and not layer.merged and not model[1].training
    assert torch.equal(layer.weight, torch.ones(2, 2))


def test_wrong_arguments() -> None:
    model = Quadratic(1.0, 2.0)
    with pytest.raises(ValueError, match="no parameters"):
        curvature.eigenvalues(model.loss, nn.ReLU())
    with pytest.raises(ValueError, match="samples must be at least 2"):
        curvature.trace(model.loss, model, samples=1)
    with pytest.raises(ValueError, match="tolerance"):
        curvature.eigenvalues(model.loss, model, products=0)
    with pytest.raises(ValueError, match="a: the loss must be a scalar"):
        curvature.similarities({"a": lambda: model.x * 2}, model)
    with pytest.raises(ValueError, match="has no graph"):
        curvature.eigenvalues(lambda: model.x.detach().sum(), model)
    for loss in ([], [model.loss()], model.loss()):
        with pytest.raises(ValueError, match="must be a callable"):
            curvature.trace(loss, model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at_once must be at least 2, not 1"):
        curvature.similarities({"a": model.loss}, model, at_once=1)
    with pytest.raises(ValueError, match='called "all"'):
        curvature.similarities({"a": model.loss}, model, group_of=lambda name: "all")
