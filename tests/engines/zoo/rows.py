"""Which row belongs to which task: rows in another order, several for an example, or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .net import LENGTH, TASKS, WIDTH, Net, Sequences, squares


class Rows(Net):
    """Two layers and a norm, which subclasses apply to rows that they arrange."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(WIDTH, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.shift = nn.Parameter(torch.randn(4))

    def layers(self, rows: Tensor) -> Tensor:
        return self.b(self.norm(self.a(rows).tanh()) + self.shift)


class Permuted(Rows):
    """As many rows as examples, in another order."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(len(x)).roll(2).flip(0)
        return torch.empty(len(x), 2, dtype=x.dtype).index_copy(0, order, self.layers(x[order]))


class Reversed(Rows):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flip(0)).flip(0)


class Copies(Rows):
    """Several rows for an example, all copies beside each other or one copy of the batch after the other."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(2 * len(x), WIDTH, dtype=torch.float64).to(x.dtype)
        if self.beside:
            return self.layers(x.repeat_interleave(2, 0) + noise).view(len(x), 2, 2)
        return self.layers(x.repeat(2, 1) + noise).view(2, len(x), 2).transpose(0, 1)


class Siamese(Rows):
    """Two inputs of each example go through the layers as one large batch."""

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return torch.randn(len(ids), WIDTH), torch.randn(len(ids), WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        left, right = self.layers(torch.cat([x, y])).split(len(x))
        return left * right


class Halves(Rows):
    """The batch in two parts, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        half = (len(x) + 1) // 2
        return torch.cat([self.layers(x[:half]), self.layers(x[half:])])


class OneByOne(Rows):
    """A loop over the examples, each as a vector or as a batch of one row."""

    def __init__(self, vector: bool) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, x: Tensor) -> Tensor:
        if self.vector:
            return torch.stack([self.layers(row) for row in x])
        return torch.cat([self.layers(x[i : i + 1]) for i in range(len(x))])


class ByTask(Rows):
    """A loop over the tasks."""

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        losses = x.new_zeros(len(x))
        for n in range(TASKS):
            losses = losses.index_put((ids == n,), squares(self.layers(x[ids == n])))
        return losses


class Experts(Net):
    """A mixture of experts with routing by index: an expert gets the rows that chose it, and may drop some."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.router, self.capacity = nn.Linear(WIDTH, 3), capacity
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.softmax(self.router(x), -1)
        result = x
        for e, expert in enumerate(self.experts):
            chosen = (gates.argmax(1) == e).nonzero()[: self.capacity, 0]
            result = result.index_add(0, chosen, gates[chosen, e, None] * expert(x[chosen]))
        return result


class ExpertsOfTokens(Experts, Sequences):
    """Every token chooses its expert."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


class Dropped(Rows, Sequences):
    """Some tokens are dropped. The number of those that stay is a multiple of the number of examples, but the numbers
    of the examples differ.
    """

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        kept = torch.cat([torch.arange(len(flat) - len(x) - 1), torch.tensor([len(flat) - 1])])
        return flat.new_zeros(len(flat), 2).index_copy(0, kept, self.layers(flat[kept])).view(len(x), -1)


class SortedByNorm(Rows, Sequences):
    """The tokens of the whole batch are sorted by size, and sorted back."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        order = flat.norm(dim=1).argsort()
        return self.layers(flat[order])[order.argsort()].view(len(x), -1)


class Gathered(Rows, Sequences):
    """One token of each example, chosen by gather; the result is scattered back."""

    def forward(self, x: Tensor) -> Tensor:
        place = x.sum(2).argmax(1)[:, None, None]
        y = self.layers(x.gather(1, place.expand(-1, 1, WIDTH)))
        return x.scatter_add(1, place.expand(-1, 1, 2), y)


class Merged(Rows, Sequences):
    """The tokens of two neighbouring examples in one row of the layers' input: rows hold more than one example, but the
    layers treat tokens one by one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if len(x) % 2:
            return self.layers(x)
        return self.layers(x.view(len(x) // 2, 2 * LENGTH, WIDTH)).view(len(x), -1)


class Windows(Rows, Sequences):
    """Overlapping windows of each sequence, in the order (window, example)."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(1, 2, 1).permute(1, 0, 3, 2)  # (windows, B, 2, WIDTH)
        return self.layers(windows.flatten(0, 2)).view(*windows.shape[:3], 2).transpose(0, 1)


class TokenTasks(Rows, Sequences):
    """Every token has its own task, and its own loss."""

    def loss_ids(self, ids: Tensor, *inputs: Any) -> Tensor:
        return ids.repeat(LENGTH).roll(1)

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        return squares(self.layers(x.flatten(0, 1)))


class TwoTasksForEach(Rows):
    """Every example has a loss of two tasks: the trunk's rows belong to both."""

    def loss_ids(self, ids: Tensor, *inputs: Any) -> Tensor:
        return torch.cat([torch.zeros_like(ids), torch.full_like(ids, 3)])

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        y = self.layers(x)
        return torch.cat([y[:, 0].square(), (y[:, 1] - 1).square()])


class SeveralTasksInARow(TokenTasks):
    """As with a task for every token, but an example's tokens are mixed before the layers."""

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        return super().losses(ids, x.cumsum(1) + self.layers(x).sum((1, 2), keepdim=True))


class LossOfTokens(Rows, Sequences):
    """A loss for each token, (B, T), some of which are masked to zero."""

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        losses = squares(self.layers(x).flatten(0, 1)).view(x.shape[:2])
        return losses * (torch.arange(LENGTH) < torch.arange(len(x))[:, None] % LENGTH + 1)


class ConvolutionOfTheBatch(Sequences):
    """All examples as channels of one grouped convolution, with the weight repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(4, WIDTH, 2)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        b = len(x)
        y = torch.conv1d(x.mT.reshape(1, b * WIDTH, LENGTH), self.weight.repeat(b, 1, 1), groups=b)
        return self.out(y.view(b, 4, -1).mT.tanh())


ROWS = {
    "permuted": Permuted,
    "reversed": Reversed,
    "copies beside each other": lambda: Copies(beside=True),
    "copies of the batch": lambda: Copies(beside=False),
    "Siamese": Siamese,
    "two halves": Halves,
    "one by one": lambda: OneByOne(vector=False),
    "one by one, vectors": lambda: OneByOne(vector=True),
    "by task": ByTask,
    "experts": Experts,
    "experts that drop rows": lambda: Experts(capacity=1),
    "experts of tokens": ExpertsOfTokens,
    "dropped tokens": Dropped,
    "sorted tokens": SortedByNorm,
    "gathered tokens": Gathered,
    "two examples in a row": Merged,
    "windows": Windows,
    "a task for each token": TokenTasks,
    "two tasks for each example": TwoTasksForEach,
    "several tasks in a row": SeveralTasksInARow,
    "losses of tokens": LossOfTokens,
    "the batch as channels": ConvolutionOfTheBatch,
}
