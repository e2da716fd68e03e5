"""What the tests of weightings from the Gram matrix share: gradients, also degenerate ones, and a small network."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn


@st.composite
def gradients(draw, tasks=(1, 6), spread=6):
    """(K, P) gradients. Some are equal, opposite, zero, combinations of others, or 10^±spread times as large."""
    k = draw(st.integers(*tasks))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.normal(size=(k, draw(st.integers(1, 8)))) + draw(st.sampled_from([0.0, 0.5]))
    for i in range(1, k):
        kind = draw(st.sampled_from(["as it is", "as it is", "equal", "opposite", "combination", "zero"]))
        rows[i] = {
            "as it is": rows[i],
            "equal": rows[i - 1],
            "opposite": -rows[i - 1],
            "combination": rng.normal(size=i) @ rows[:i],
            "zero": 0 * rows[i],
        }[kind]
    sizes = draw(st.lists(st.integers(-spread, spread), min_size=k, max_size=k))
    return rows * 10.0 ** np.array(sizes)[:, None]


def gram_of(rows):
    return torch.tensor(rows @ rows.T)


def weights_of(weighting, rows, losses=None, scale=1.0):
    """What a new weighting returns for the gradients of all tasks, as numpy."""
    weighting.start(len(rows))
    losses = torch.ones(len(rows)).double() if losses is None else torch.tensor(losses)
    (found,) = weighting.weights_from_grams(scale * gram_of(rows)[None], losses, range(len(rows)))
    return found.numpy()


class Net(nn.Module):
    """A loss for each of three tasks, with inputs of its own."""

    def __init__(self, tasks=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.x = torch.randn(tasks, 6, 5).double()
        self.y = torch.randn(tasks, 6, 2).double()

    def loss(self, n):
        return (self.layers(self.x[n]) - self.y[n]).square().mean()

    def gradients(self):
        """(K, P) float64."""
        rows = [torch.autograd.grad(self.loss(n), list(self.parameters())) for n in range(len(self.x))]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).numpy()
