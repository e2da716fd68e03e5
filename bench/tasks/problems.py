"""The problems: small multi-task trainings that anything with a CPU solves in seconds. A seed fixes data and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

Loss = Callable[[], Tensor] | Tensor


@dataclass(frozen=True)
class Trial:
    """One training that is about to start.

    losses: the K losses of the next step. errors: the errors of the tasks on fresh data without noise; a problem whose
    losses belong to one answer has one error. last_shared: the parameters of the last layer that all tasks share.
    """

    model: nn.Module
    losses: Callable[[], Sequence[Loss]]
    errors: Callable[[], list[float]]
    last_shared: list[nn.Parameter]


@dataclass(frozen=True)
class Problem:
    """tasks: how many. trial: makes the trial of a seed. noisy: one task is so noisy that it should get less weight."""

    name: str
    tasks: int
    steps: int
    lr: float
    trial: Callable[[int], Trial]
    noisy: bool = False


def problems() -> dict[str, Problem]:
    """All problems by name, in the order of the tables."""
    found = []
    for tasks in (2, 4, 8):
        for kind, changes in (
            ("equal tasks", {}),
            ("last loss × 10", {"scale": 10.0}),
            ("last loss × 100", {"scale": 100.0}),
            ("last loss × 0.01", {"scale": 0.01}),
            ("last task noisy", {"noise": 2.0}),
        ):
            trial = partial(_regression, tasks, **changes)
            found.append(Problem(f"regression, K={tasks}, {kind}", tasks, 900, 3e-3, trial, noisy="noise" in changes))
    found.append(Problem("trunk with heads", len(TRUNK), 1000, 3e-3, _trunk))
    found.append(Problem("heat equation", 3, 1000, 3e-3, _heat))
    found.append(Problem("transformer classifier", len(CLASSIFIER), 400, 3e-3, _classifier))
    return {problem.name: problem for problem in found}


# --- regression: K targets of one input, one hidden layer -----------------------------------------------------------


def _regression(tasks: int, seed: int, scale: float = 1.0, noise: float = 0.1) -> Trial:
    """Each target is a linear function of 16 inputs with noise of 0.1, and all 512 examples are in every batch.

    scale: multiplies the last loss. noise: that of the last target. The error is the squared error without noise; an
    answer of 0 has one of 16.
    """
    random = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=random)
    map_, x, fresh = normal(16, tasks), normal(512, 16), normal(1000, 16)
    noises = torch.tensor([0.1] * (tasks - 1) + [noise])
    scales = torch.tensor([1.0] * (tasks - 1) + [scale])
    y = x @ map_ + noises * normal(512, tasks)
    hidden = _seeded(seed, lambda: nn.Linear(16, 64))
    model = nn.Sequential(hidden, nn.Tanh(), _seeded(seed + 1, lambda: nn.Linear(64, tasks)))

    def errors() -> list[float]:
        return (model(fresh) - fresh @ map_).square().mean(0).tolist()

    return Trial(model, lambda: (scales * (model(x) - y).square().mean(0)).unbind(), errors, list(hidden.parameters()))


# --- a shared trunk with one head per task --------------------------------------------------------------------------

# (frequency, number of examples, standard deviation of the noise) of each task: easy, harder, few examples, noisy.
TRUNK = ((1.0, 1024, 0.1), (3.0, 1024, 0.1), (1.0, 128, 0.1), (1.0, 1024, 1.0))


def _trunk(seed: int) -> Trial:
    """Each task has its own inputs, around its own mean, and its target is a sine wave along 4 directions.

    The error is the squared error as a share of the target's variance.
    """
    random = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=random)
    directions, width = normal(8, 4) / math.sqrt(8), 64
    shared = _seeded(seed, lambda: nn.Linear(width, width))
    trunk = nn.Sequential(_seeded(seed + 1, lambda: nn.Linear(8, width)), nn.Tanh(), shared, nn.Tanh())
    heads = _seeded(seed + 2, lambda: nn.ModuleList(nn.Linear(width, 1) for _ in TRUNK))

    def target(x: Tensor, mix: Tensor, frequency: float) -> Tensor:
        return torch.sin(frequency * x @ directions) @ mix

    train, test = [], []
    for frequency, count, noise in TRUNK:
        mean, mix = 0.5 * normal(8), normal(4, 1)
        x, fresh = mean + normal(count, 8), mean + normal(2000, 8)
        train.append((x, target(x, mix, frequency) + noise * normal(count, 1)))
        test.append((fresh, target(fresh, mix, frequency)))

    def loss(n: int, rows: Tensor) -> Tensor:
        x, y = train[n]
        return (heads[n](trunk(x[rows])) - y[rows]).square().mean()

    def losses() -> list[Loss]:
        return [partial(loss, n, _rows(len(x), 64, random)) for n, (x, _) in enumerate(train)]

    def errors() -> list[float]:
        return [((heads[n](trunk(x)) - y).square().mean() / y.var()).item() for n, (x, y) in enumerate(test)]

    return Trial(nn.ModuleList([trunk, heads]), losses, errors, list(shared.parameters()))


# --- a physics-informed network -------------------------------------------------------------------------------------


def _heat(seed: int) -> Trial:
    """The heat equation u_t = u_xx for 0 < x < 1 and 0 < t < 0.1, with u = 0 at both ends and u = sin 2πx at t = 0.

    The tasks are the residual of the equation, the ends and the start. u_xx has the size 4π², so the loss of the
    residual is about 1,000 times the others. The solution is exp(−4π²t) sin 2πx. The one error is the distance from
    it relative to its norm, on a grid.
    """
    random = torch.Generator().manual_seed(seed)
    uniform = partial(torch.rand, generator=random)
    last = _seeded(seed, lambda: nn.Linear(32, 1))
    layers = [_seeded(seed + 1, lambda: nn.Linear(2, 32)), nn.Tanh(), _seeded(seed + 2, lambda: nn.Linear(32, 32))]
    model = nn.Sequential(*layers, nn.Tanh(), last)

    def u(x: Tensor, t: Tensor) -> Tensor:
        return model(torch.stack([x, 10 * t], 1)).squeeze(1)

    def residual(x: Tensor, t: Tensor) -> Tensor:
        x.requires_grad_(), t.requires_grad_()
        u_x, u_t = torch.autograd.grad(u(x, t).sum(), (x, t), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
        return (u_t - u_xx).square().mean()

    def losses() -> list[Loss]:
        inside, ends, start = (uniform(128), 0.1 * uniform(128)), 0.1 * uniform(32), uniform(64)
        return [
            partial(residual, *inside),
            lambda: u(torch.arange(32) % 2.0, ends).square().mean(),
            lambda: (u(start, torch.zeros(64)) - torch.sin(2 * math.pi * start)).square().mean(),
        ]

    def errors() -> list[float]:
        x, t = torch.cartesian_prod(torch.linspace(0, 1, 51), torch.linspace(0, 0.1, 51)).unbind(1)
        solution = torch.exp(-4 * math.pi**2 * t) * torch.sin(2 * math.pi * x)
        return [((u(x, t) - solution).norm() / solution.norm()).item()]

    return Trial(model, losses, errors, list(last.parameters()))


# --- a transformer that classifies sequences ------------------------------------------------------------------------

# (number of examples, share of wrong labels) of each task.
CLASSIFIER = ((2048, 0.0), (2048, 0.25), (512, 0.0), (256, 0.0))
TOKENS, LENGTH = 8, 12


def _classifier(seed: int) -> Trial:
    """Task n asks whether the first token 2n of a sequence comes before its first token 2n + 1.

    Each task has its own sequences, which have both tokens. The error is the share of wrong answers.
    """
    random = torch.Generator().manual_seed(seed)
    model = _seeded(seed, _Classifier)

    def sequences(n: int, count: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(TOKENS, (4 * count, LENGTH), generator=random)
        even, odd = tokens == 2 * n, tokens == 2 * n + 1
        both = (even.any(1) & odd.any(1)).nonzero().squeeze(1)[:count]
        return tokens[both], (even.int().argmax(1) < odd.int().argmax(1))[both].float()

    train, test = [], []
    for n, (count, wrong) in enumerate(CLASSIFIER):
        tokens, labels = sequences(n, count)
        flipped = torch.rand(count, generator=random) < wrong
        train.append((tokens, torch.where(flipped, 1 - labels, labels)))
        test.append(sequences(n, 2000))

    def loss(n: int, rows: Tensor) -> Tensor:
        tokens, labels = train[n]
        return nn.functional.binary_cross_entropy_with_logits(model(tokens[rows])[:, n], labels[rows])

    def losses() -> list[Loss]:
        return [partial(loss, n, _rows(len(labels), 16, random)) for n, (_, labels) in enumerate(train)]

    def errors() -> list[float]:
        return [
            ((model(tokens)[:, n] > 0) != (labels > 0)).float().mean().item() for n, (tokens, labels) in enumerate(test)
        ]

    return Trial(model, losses, errors, list(model.layer.linear2.parameters()))


class _Classifier(nn.Module):
    """Tokens (B, LENGTH) → one logit for each task, (B, K). One layer of width 32, and the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, 32)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.heads = nn.Linear(32, len(CLASSIFIER))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.heads(self.layer(self.tokens(tokens) + self.positions).mean(1))


# --- helpers --------------------------------------------------------------------------------------------------------


def _seeded(seed: int, build: Callable[[], nn.Module]):
    """Builds a module with its own random numbers, and leaves torch's as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _rows(count: int, batch: int, random: torch.Generator) -> Tensor:
    return torch.randint(count, (batch,), generator=random)
