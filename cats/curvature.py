"""The loss landscape around the present parameters of a model: curvature of each task, alignment of the tasks.

It measures and changes nothing: parameters, ``p.grad``, the modes of the modules and the global random state are the
same afterwards. All of it works for any model and any losses::

    losses = {"az": lambda: loss(model(x_az), y_az), "be": lambda: loss(model(x_be), y_be)}
    cats.curvature.eigenvalues(losses["az"], model).top
    cats.curvature.trace(losses["az"], model)
    cats.curvature.similarities(losses, model)["all"].cosine
    cats.curvature.interference(losses, model, lr=0.01)

A loss is a callable that returns a scalar tensor with a graph, or several callables whose sum is the loss, such as one
for each batch. They are called several times and must compute the same each time, from the same batch. Meanwhile the
model is in evaluation mode, so dropout is off and batch norm uses its running statistics; torch.compile is off, and
attention is computed by torch's math kernels, because fused ones have no second derivative (and nor have those of cuDNN
for recurrent layers on a GPU: switch them off with ``torch.backends.cudnn.flags(enabled=False)``).

The parameters are those of the model that require a gradient. Sharded ones are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cats import ops
from cats.engines.autograd import uncompiled
from cats.gradients import Gradient, add, dense, is_sharded
from cats.multitask import NonFiniteError

__all__ = ["Eigenvalues", "Similarity", "Trace", "eigenvalues", "interference", "similarities", "trace"]

Loss: TypeAlias = Callable[[], Tensor] | Sequence[Callable[[], Tensor]]
ALL = "all"  # the group of all parameters


@dataclass(frozen=True)
class Eigenvalues:
    """The two ends of the spectrum of a Hessian.

    Attributes:
        largest: the most positive eigenvalue.
        smallest: the most negative eigenvalue.
        error: there is an eigenvalue within this distance of each of them.
        products: the number of Hessian-vector products that it took.
    """

    largest: float
    smallest: float
    error: float
    products: int

    @property
    def top(self) -> float:
        """The eigenvalue with the largest absolute value, with its sign: the one that power iteration finds."""
        return self.largest if self.largest >= -self.smallest else self.smallest


@dataclass(frozen=True)
class Trace:
    """An estimate of the trace of a Hessian: the sum of its eigenvalues.

    Attributes:
        value: the estimate.
        error: its standard error.
    """

    value: float
    error: float


@dataclass(frozen=True)
class Similarity:
    """How similar the gradients of K tasks are, by a group of parameters. Float64 on the CPU.

    Attributes:
        cosine: (K, K), the cosine of the angle between g_i and g_j. nan if one of them is zero.
        magnitude: (K, K), 2 |g_i| |g_j| / (|g_i|² + |g_j|²), from 0 to 1: gradient magnitude similarity (Yu et al.,
            "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Definition 2). nan if both are zero.
        norms: (K,), |g_i|.
    """

    cosine: Tensor
    magnitude: Tensor
    norms: Tensor


def eigenvalues(
    loss: Loss, model: nn.Module, *, tolerance: float = 0.02, products: int = 100, seed: int = 0
) -> Eigenvalues:
    """The largest and the smallest eigenvalue of the Hessian of a loss, by the method of Lanczos (1950).

    Power iteration converges only to the eigenvalue with the largest absolute value, slowly if two are close. Lanczos
    finds both ends of the spectrum, and from fewer products. `Eigenvalues.top` is what power iteration finds, with its
    sign: in the paper of CATS the top eigenvalue of a language. `largest` is the most positive one.

    The vectors are not orthogonalised again: rounding errors then only give copies of eigenvalues that were found
    already (Paige, 1972), and memory is needed for three vectors, not for one per product.

    Args:
        loss: see the module. The graph of a single callable is kept; several are evaluated again for each product, so
            that one graph at a time is in memory.
        tolerance: stop when `error` is at most this share of the largest absolute value.
        products: stop after so many products, at the latest.
        seed: of the random vector to start from.

    Raises:
        ValueError: the model has no parameters, or sharded ones; the loss is no scalar, or has no graph.
        NonFiniteError: the loss or a product is nan or infinite.
    """
    if not tolerance >= 0 or products < 1:
        raise ValueError(f"tolerance must be at least 0 and products at least 1, not {tolerance} and {products}")
    with _measuring(model) as params:
        hessian = _Hessian(loss, params)
        vector = hessian.random(torch.Generator().manual_seed(seed))
        vector /= math.sqrt(_dot(vector, vector))
        previous, coupling = torch.zeros_like(vector), 0.0
        diagonal: list[float] = []
        beside: list[float] = []  # the tridiagonal matrix whose eigenvalues approach those of the Hessian
        while True:
            product = hessian @ vector
            diagonal.append(_dot(product, vector))
            product.sub_(vector, alpha=diagonal[-1]).sub_(previous, alpha=coupling)
            coupling = math.sqrt(_dot(product, product))
            if not math.isfinite(coupling):
                raise NonFiniteError("the product of the Hessian with a vector is not finite")
            off = torch.tensor(beside, dtype=torch.float64)
            matrix = torch.tensor(diagonal, dtype=torch.float64).diag() + off.diag(1) + off.diag(-1)
            values, vectors = torch.linalg.eigh(matrix)
            error = coupling * float(vectors[-1, [0, -1]].abs().max())
            if error <= tolerance * float(values.abs().max()) or len(diagonal) == products:
                return Eigenvalues(float(values[-1]), float(values[0]), error, len(diagonal))
            beside.append(coupling)
            previous, vector = vector, product.div_(coupling)


def trace(loss: Loss, model: nn.Module, *, samples: int = 8, seed: int = 0) -> Trace:
    """The trace of the Hessian of a loss: the mean of zᵀHz over random vectors z of ±1 (Hutchinson, 1989).

    The same seed gives the same vectors for all losses, so that their traces can be compared.

    Args:
        loss: as in `eigenvalues`.
        samples: the number of vectors, at least 2. The error decreases with its square root.

    Raises:
        ValueError, NonFiniteError: as `eigenvalues`.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, not {samples}: one number has no standard error")
    with _measuring(model) as params:
        hessian, generator = _Hessian(loss, params), torch.Generator().manual_seed(seed)
        found = []
        for _ in range(samples):
            normal = hessian.random(generator)
            signs = torch.copysign(torch.ones_like(normal), normal)
            found.append(_dot(hessian @ signs, signs))
    numbers = torch.tensor(found, dtype=torch.float64)
    if not numbers.isfinite().all():
        raise NonFiniteError("the product of the Hessian with a vector is not finite")
    return Trace(float(numbers.mean()), float(numbers.std()) / math.sqrt(samples))


def similarities(
    losses: Mapping[str, Loss],
    model: nn.Module,
    *,
    group_of: Callable[[str], str] | None = None,
    at_once: int = 32,
) -> dict[str, Similarity]:
    """{group of parameters: how similar the tasks' gradients are there}. The first group, "all", has all parameters.

    All numbers follow from one Gram matrix per group, and all of these from one pass over the gradients. With more than
    `at_once` tasks it is one pass over each two blocks of tasks, and the gradients of most blocks are computed again:
    with 92 tasks and 32 at once 3.3 times as many.

    Args:
        losses: {task: its loss}.
        group_of: the group of a parameter by its name in the model, such as ``lambda name: name.split(".")[0]``.
        at_once: how many gradients are in memory at a time, at least 2.

    Raises:
        ValueError: as `eigenvalues`, or a group is called "all", or `at_once` is below 2.
        NonFiniteError: a loss or a gradient is nan or infinite. The message names the task.
    """
    with _measuring(model) as params:
        names = [ALL if group_of is None else group_of(name) for name in params]
        groups = list(dict.fromkeys(names))
        if group_of is not None and ALL in groups:
            raise ValueError(f'a group is called "{ALL}", which is the name of that of all parameters')
        if at_once < 2:
            raise ValueError(f"at_once must be at least 2, not {at_once}")
        grams = _grams(losses, list(params.values()), [groups.index(name) for name in names], at_once)
    for task, square in zip(losses, grams.sum(0).diagonal(), strict=True):
        if not square.isfinite():
            raise NonFiniteError(f"{task}: the gradient is not finite")
    found = {ALL: _similarity(grams.sum(0))}
    if group_of is not None:
        found.update({name: _similarity(gram) for name, gram in zip(groups, grams, strict=True)})
    return found


def interference(losses: Mapping[str, Loss], model: nn.Module, *, lr: float) -> Tensor:
    """How a step along one task's gradient changes each task's loss: I(L_i, L_j) = L_i(θ − lr g_j) − L_i(θ).

    Returns (K, K), float64 on the CPU: row i for the task whose loss changes, column j for the one that is followed.
    Above 0, the step harms. These are the differences of the losses themselves. Where these are smooth, which ReLU is
    not everywhere, they are -lr <g_i, g_j> + lr²/2 g_jᵀ H_i g_j to the second order in lr. Eq. 1
    of the paper of CATS (Li and Gong, NeurIPS 2021) is about a minimum of L_i, where the first term is 0. The second is
    at most lr²/2 |g_j|² times the largest eigenvalue of H_i: the sharper the landscape of a task, the more others can
    harm it. Elsewhere, add lr <g_i, g_j> to get the second term alone.

    Args:
        losses: {task: its loss}. Each is evaluated K + 1 times.
        lr: the size of the step.

    Raises:
        ValueError: as `eigenvalues`.
        NonFiniteError: a loss or a gradient is nan or infinite. The message names the task.
    """
    with _measuring(model) as params:
        tensors = list(params.values())
        before = _values(losses)
        result = torch.empty(len(losses), len(losses), dtype=torch.float64)
        for j, (task, loss) in enumerate(losses.items()):
            with _moved(tensors, _gradient(loss, tensors, task), -lr):
                result[:, j] = _values(losses) - before
    return result


@contextmanager
def _measuring(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters by name. In the block, the model computes the same each time, and can be differentiated twice."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("the model has no parameters that require a gradient")
    if any(map(is_sharded, params.values())):
        raise ValueError("the model has sharded parameters: measure it before they are sharded, or gathered")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), uncompiled():
            yield params
    finally:
        for module, training in modes:  # a child may have another mode than its parents, which come first
            if module.training != training:
                module.train(training)  # not the flag alone: some layers do more, such as taking LoRA's product out


class _Hessian:
    """The Hessian of a loss, as far as its products with vectors: the derivative of <gradient, vector> (Pearlmutter,
    "Fast Exact Multiplication by the Hessian", 1994). Vectors have all P parameters in a row."""

    def __init__(self, loss: Loss, params: Mapping[str, Tensor]) -> None:
        self.params, self.parts = list(params.values()), _parts(loss)
        self.kept = self._gradient(self.parts[0]) if len(self.parts) == 1 else None

    def random(self, generator: torch.Generator) -> Tensor:
        """A normal vector (P,), of the widest dtype. It is drawn on the CPU, so that it is the same on all devices."""
        like = torch.cat([p.detach().new_empty(0) for p in self.params])
        return torch.randn(sum(p.numel() for p in self.params), generator=generator, device="cpu").to(like)

    def __matmul__(self, vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        pieces = vector.split([p.numel() for p in self.params])
        directions = [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, self.params, strict=True)]
        for part in self.parts:
            gradient = self.kept if self.kept is not None else self._gradient(part)
            # A gradient without a graph is constant.
            curved = [(g, d) for g, d in zip(gradient, directions, strict=True) if g is not None and g.requires_grad]
            if curved:
                products = torch.autograd.grad(
                    [g for g, _ in curved],
                    self.params,
                    [d for _, d in curved],
                    retain_graph=self.kept is not None,
                    materialize_grads=True,
                )
                total += torch.cat([(p.to_dense() if p.is_sparse else p).flatten() for p in products])
        return total

    def _gradient(self, part: Callable[[], Tensor]) -> Gradient:
        value = _value(part)
        return list(torch.autograd.grad(value, self.params, create_graph=True, allow_unused=True))


def _gradient(loss: Loss, params: Sequence[Tensor], task: str) -> Gradient:
    """The gradient, without a graph."""
    total: Gradient = [None] * len(params)
    for part in _parts(loss):
        total = add(total, [*map(dense, torch.autograd.grad(_value(part, task), params, allow_unused=True))])
    return total


def _grams(losses: Mapping[str, Loss], params: Sequence[Tensor], groups: Sequence[int], at_once: int) -> Tensor:
    """The Gram matrix of each group of parameters, (G, K, K) float64 on the CPU. groups: that of each parameter."""
    tasks = list(losses)
    size = max(1, len(tasks) if len(tasks) <= at_once else at_once // 2)
    blocks = [range(start, min(start + size, len(tasks))) for start in range(0, len(tasks), size)]
    result = torch.empty(max(groups) + 1, len(tasks), len(tasks), dtype=torch.float64)

    def gradients(block: Sequence[int]) -> list[Gradient]:
        return [_gradient(losses[tasks[i]], params, tasks[i]) for i in block]

    for number, block in enumerate(blocks):
        others = blocks[number + 1 :]
        if number and not others:  # it has met all other blocks
            break
        own = gradients(block)
        for other in others or [range(0)]:
            index = torch.tensor([*block, *other])
            result[:, index[:, None], index] = ops.gram([*own, *gradients(other)], groups=groups).cpu()
    return result


def _similarity(gram: Tensor) -> Similarity:
    norms = gram.diagonal().sqrt()
    ratios = norms[:, None] / norms
    cosine = (gram / (norms[:, None] * norms)).clamp(-1, 1)
    cosine.diagonal().copy_(ratios.diagonal())  # 1 or nan, without rounding errors
    return Similarity(cosine, 2 / (ratios + ratios.T), norms)


@contextmanager
def _moved(params: Sequence[Tensor], direction: Gradient, distance: float) -> Iterator[None]:
    before = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            for p, d in zip(params, direction, strict=True):
                if d is not None:
                    p.add_(d, alpha=distance)
        yield
    finally:
        with torch.no_grad():
            for p, saved in zip(params, before, strict=True):
                p.copy_(saved)


@torch.no_grad()
def _values(losses: Mapping[str, Loss]) -> Tensor:
    """The losses, (K,) float64."""
    sums = [sum(_value(part, task).item() for part in _parts(loss)) for task, loss in losses.items()]
    return torch.tensor(sums, dtype=torch.float64)


def _parts(loss: Loss) -> Sequence[Callable[[], Tensor]]:
    parts = list(loss) if isinstance(loss, Sequence) else [loss]
    if not parts or not all(map(callable, parts)):
        raise ValueError("a loss must be a callable that returns a scalar tensor, or several of them: lambda: loss(..)")
    return parts


def _value(part: Callable[[], Tensor], task: str = "") -> Tensor:
    """The value of a callable, checked."""
    value, where = part(), f"{task}: " if task else ""
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"{where}the loss must be a scalar tensor")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(f"{where}the loss has no graph: compute it from the model inside the callable")
    if not value.isfinite():
        raise NonFiniteError(f"{where}the loss is {value.item()}")
    return value


def _dot(x: Tensor, y: Tensor) -> float:
    """<x, y>, with sums in float64."""
    return float(ops.dots([[x]], [y]))
