"""What the tests of the engines share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from cats.engines.examples import Examples
from cats.engines.losses import TaskLosses
from cats.engines.per_task import task_gradients

K = 3  # the number of tasks of the models below
WEIGHTS = [0.5, 2.0, 0.0]
IDS = torch.tensor([2, 0, 1, 2, 1, -1])  # the tasks of six examples, one of which does not count


def params_of(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def data(n, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def by_task(losses):
    return TaskLosses(list(range(len(losses))), losses, [f"task {n}" for n in range(len(losses))])


class Net(nn.Module):
    """A model with one loss per task. ``shared`` are the parameters that all tasks share, if not all are."""

    @property
    def shared(self):
        return list(self.parameters())

    def per_example(self, x, n):
        raise NotImplementedError

    def loss(self, n):
        return self.per_example(data(n, 6, 4).to(next(self.parameters()).dtype) + n, n).mean()


class Heads(Net):
    """Dropout; private heads, one of them frozen; a parameter that no task uses, and one that task 0 does not use."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 5))
        self.shift = nn.Parameter(torch.ones(5))
        self.unused = nn.Parameter(torch.ones(2))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(K))
        self.heads[2].requires_grad_(False)

    @property
    def shared(self):
        return [*self.trunk.parameters(), self.shift, self.unused]

    def per_example(self, x, n):
        z = torch.tanh(self.trunk(x))
        return (self.heads[n](z * self.shift if n else z) - n).square().squeeze(1)


class Attention(Net):
    """Tied embeddings, fused attention with dropout on its weights, and optionally activation checkpointing."""

    def __init__(self, checkpoints=False):
        super().__init__()
        self.checkpoints = checkpoints
        self.embedding = nn.Embedding(11, 8)
        self.projection = nn.Linear(8, 24)
        self.norm = nn.RMSNorm(8, eps=1e-6)

    def mix(self, x):
        """Self-attention of x (B, T, 8)."""
        q, k, v = self.projection(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True)
        return self.norm(x + F.dropout(y.transpose(1, 2).flatten(2), 0.2))

    def per_token(self, n=0):
        """(6, 5), a loss for each token."""
        ids = torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(n))
        x = self.embedding(ids)
        x = checkpoint(self.mix, x, use_reentrant=False) if self.checkpoints else self.mix(x)
        logits = F.linear(x, self.embedding.weight).flatten(0, 1)
        return F.cross_entropy(logits, ids.roll(1).flatten(), reduction="none").view(6, 5)

    def loss(self, n):
        return self.per_token(n).mean()


class Checkpoints(Attention):
    def __init__(self):
        super().__init__(checkpoints=True)


class Norms(Net):
    """Batch norm in training mode and spectral norm, whose buffers every forward pass changes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)
        )

    def per_example(self, x, n):
        return self.layers(x).square().squeeze(1)


class Recurrent(Net):
    """A GRU used twice, a convolution, and a target that is computed by the model itself without gradient."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.convolution = nn.Conv1d(4, 3, 2)

    def per_example(self, x, n):
        z, _ = self.gru(x[None])
        with torch.no_grad():
            target, _ = self.gru(z + n)
        z = self.convolution(self.gru(z)[0].transpose(1, 2)).square().mean()
        return (z + (target[0] - x).detach().square().mean() * self.gru.weight_ih_l0.sum()).expand(6)


NETS = [Heads, Attention, Checkpoints, Norms, Recurrent]


def make(net, dtype=torch.float64):
    torch.manual_seed(7)
    return net().to(dtype)


@dataclass
class Expected:
    """What an engine must give, computed from one gradient per task."""

    values: list[torch.Tensor]
    combined: list[torch.Tensor | None]  # ḡ
    dots: list[torch.Tensor]
    sqnorms: list[torch.Tensor]


def split_parameters(model):
    """The parameters that require grad, the shared ones first, and the number of shared ones."""
    shared = {id(p) for p in model.shared}
    trainable = [p for p in model.parameters() if p.requires_grad]
    params = sorted(trainable, key=lambda p: id(p) not in shared)
    return params, sum(id(p) in shared for p in params)


def flat(gradient):
    """In float64. Without the parameters whose gradient is None."""
    return torch.cat([g.to_dense().double().flatten() for g in gradient if g is not None])


def mixed(loss):
    """Losses per example, for IDS."""
    return Examples(loss, IDS, list(range(K)), K, mean=True)


def expected(losses, params, shared, weights=WEIGHTS):
    values, gradients = task_gradients(by_task(losses), params)
    rows = [
        [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(params, row, strict=True)]
        for row in gradients
    ]
    combined = [sum(w * row[i].double() for w, row in zip(weights, rows, strict=True)) for i in range(len(params))]
    direction = flat(combined[:shared])
    shares = [flat(row[:shared]) for row in rows]
    return Expected(values, combined, [g @ direction for g in shares], [g @ g for g in shares])


def run(engine, losses, params, shared, *, last=True, **options):
    """One call and its numbers: what check() compares. ``losses``: a list, or losses per example."""
    if isinstance(losses, list):
        losses = by_task(losses)
    values, pending = engine.backward(losses, WEIGHTS[: len(losses.tasks)], params, shared, **options)
    return values, params, *pending.dots([p.grad for p in params], last=last)


def check(expected, values, params, dots, sqnorms, tolerance):
    """Compares what an engine gave. ḡ is in ``p.grad``. ``sqnorms`` may be None."""
    combined = flat(expected.combined)
    torch.testing.assert_close(values, expected.values, rtol=tolerance, atol=tolerance)
    got = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
    torch.testing.assert_close(got, combined, rtol=0, atol=tolerance * combined.abs().max().item())
    # The error of an inner product is relative to the product of the norms.
    norm = torch.stack(expected.sqnorms).max().sqrt() * combined.norm()
    got = [dots[n] for n in range(K)]
    torch.testing.assert_close(got, expected.dots, rtol=0, atol=tolerance * norm.item())
    assert not any(v.requires_grad for v in got)
    if sqnorms is not None:
        torch.testing.assert_close([sqnorms[n] for n in range(K)], expected.sqnorms, rtol=tolerance, atol=0)
