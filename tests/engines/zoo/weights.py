"""Parameters that are used in unusual ways: views, sums, products and functions of them, on either side."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net import TASKS, WIDTH, Net, Sequences, Stack, squares


class Matrix(Net):
    """A parameter ``w`` (WIDTH, WIDTH), a vector ``b`` (WIDTH,) and a layer after what a subclass does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.use(x).tanh())


class Chunks(Sequences):
    """Queries, keys and values from parts of one packed weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3 * WIDTH, WIDTH)), nn.Parameter(torch.randn(3 * WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.weight.chunk(3), self.bias.chunk(3), strict=True)
        query, key, value = (F.linear(x, weight, bias) for weight, bias in parts)
        return torch.softmax(query @ key.mT, dim=-1) @ value


class Transposed(Matrix):
    """W and its transpose: a tied autoencoder."""

    def use(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.w, self.b).tanh(), self.w.T)


class Slices(Matrix):
    """Overlapping parts of a weight."""

    def use(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x, self.w[:3]), F.linear(x, self.w[3:])], 1) + F.linear(
            x, self.w[:, 1:].T[:, :]
        ).sum(1, keepdim=True) * F.pad(F.linear(x[:, :4], self.w[1:, :4]), (0, 1))


class WeightAndBias(Matrix):
    """A vector as weight and as bias at once, and a row of a weight as the bias of a layer that has this weight."""

    def use(self, x: Tensor) -> Tensor:
        return F.linear(x * self.b, self.w, self.w[0]) + self.b


class LeftProduct(Matrix):
    """W on the left of the transposed inputs: examples are columns. In the first batch there are as many as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(7, WIDTH))
        self.out = nn.Linear(7, 2)

    def use(self, x: Tensor) -> Tensor:
        return (self.left @ (self.w @ x.T + self.b[:, None])).T


class Scaled(Matrix):
    """A weight times a constant, a mask, and a gain per row."""

    def use(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.w * torch.ones_like(self.w).tril(), self.b * 0.1)


class Copied(Matrix):
    """Copies of parameters in another dtype and back, as autocast makes them."""

    def use(self, x: Tensor) -> Tensor:
        return F.linear(x.double(), self.w.double(), self.b.double()).to(x.dtype) + x @ self.w.clone()


class Normalized(Matrix):
    def use(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.w)) / self.b.exp()


class Expanded(Matrix):
    """One row as all rows of a weight, and one weight for every example of a batched product."""

    def use(self, x: Tensor) -> Tensor:
        y = torch.bmm(x[:, None], self.w.expand(len(x), -1, -1))[:, 0]
        return y + F.linear(x, self.b.expand(WIDTH, -1)) + x @ self.b.repeat(WIDTH, 1)


class Assembled(Matrix):
    """A weight that is put together from parameters, and one that contains the same parameter twice."""

    def use(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.cat([self.w[:4], self.b[None]])) + F.linear(
            x, torch.stack([self.b, self.b * 2] * 3)[:5]
        )


class Product(Matrix):
    """A product of parameters as weight; the other order of the factors would not need it."""

    def use(self, x: Tensor) -> Tensor:
        return (self.w @ self.w.T @ x.T).T + torch.linalg.multi_dot([x, self.w, self.w])


class Einsum(Sequences):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, WIDTH, 3)), nn.Parameter(torch.randn(WIDTH, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.einsum("btd,hdk->bhtk", x, self.a).tanh()
        return (
            torch.einsum("bhtk,dhk->btd", heads, self.b) + torch.einsum("btd,hdk,dhk->bt", x, self.a, self.b)[..., None]
        )


class Ensemble(Net):
    """The weights of several members in one parameter, and a learnt mixture of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, WIDTH, 2)), nn.Parameter(torch.randn(3, 1, 2))
        self.mixture = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.baddbmm(self.bias, x.expand(3, -1, -1), self.weight).tanh()
        return (torch.softmax(self.mixture, 0)[:, None, None] * outputs).sum(0)


class Vmapped(Ensemble):
    """The members by torch.vmap, over parameters and over examples."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.vmap(lambda w, b: (x @ w + b).tanh())(self.weight, self.bias)
        each = torch.vmap(lambda row: (row @ self.weight[0]).tanh())(x)
        return (torch.softmax(self.mixture, 0)[:, None, None] * outputs).sum(0) + each


class Functional(Stack):
    """torch.func.functional_call with weights that are computed from the parameters."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        inner = {name: p * 0.5 for name, p in self.named_parameters()}
        return squares(torch.func.functional_call(self, inner, (x,)))


class AddMm(Matrix):
    """torch.addmm and torch.sub with factors, and a parameter that is subtracted from or divided."""

    def use(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.b, x, self.w, beta=0.5, alpha=-2)
        y = torch.sub(y, self.b, alpha=3) + (self.b - x) + self.b / (2 + x * x)
        return torch.addcmul(y, x, self.b, value=0.3)


class IntoView(Matrix):
    """A product that is written into a part of another tensor: in the graph, its node is inside another one."""

    def use(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 2, WIDTH)
        y[:, 0].addmm_(x, self.w)
        y[:, 1] += self.b
        return y.sum(1) * x


class Prototypes(Matrix):
    """Distances to parameters, and cosines with them."""

    def use(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.w) + F.cosine_similarity(x[:, None], self.w, dim=-1)


class MaskToken(Matrix):
    """A parameter where the input is masked, and a lookup of rows by index."""

    def use(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.5, self.b, x) + self.w[(x[:, 0] > 0).long()] + self.w.index_select(0, x.argmax(1))


class HyperNetwork(Net):
    """The weights of a layer are computed from the data, example by example."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.out = nn.Linear(WIDTH, WIDTH * 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.maker(x.tanh()).view(-1, 4, WIDTH)
        return self.out(torch.einsum("boi,bi->bo", weight, x).tanh())


class TaskVectors(Net):
    """A learnt vector for each task goes through a layer, and is then looked up for the examples: row n of this layer
    belongs to task n, whatever the examples are.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.vectors, self.layer, self.out = nn.Embedding(TASKS, 3), nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.first = first

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        shift = self.layer(self.vectors(ids)) if self.first else self.layer(self.vectors.weight)[ids]
        return squares(self.out((x + shift).tanh()))


class OwnLinear(torch.autograd.Function):
    """A linear layer with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad


class CustomWeight(Matrix):
    def use(self, x: Tensor) -> Tensor:
        return OwnLinear.apply(x, self.w) + self.b


class Hidden(torch.autograd.Function):
    """A layer that computes its output again in the backward pass, as reversible networks do, and adds the gradients of
    its parameters there: they are no inputs of the function.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(grad)
        return x.grad, None


class HiddenUse(Stack):
    """Parameters that the graph does not show, or shows in one of their two uses only."""

    def __init__(self, also_open: bool) -> None:
        super().__init__(WIDTH, 2)
        self.hidden, self.also_open = nn.Linear(WIDTH, WIDTH), also_open

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers[0](x).tanh()
        h = Hidden.apply(self.hidden(h) if self.also_open else h, self.hidden)
        return self.layers[1](h.tanh())


class Penalty(Stack):
    """The losses contain the norm of a weight, so every task's gradient does."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        return super().losses(ids, x) + 0.1 * self.layers[0].weight.square().sum()


class GradientPenalty(Stack):
    """The losses contain a gradient with respect to the inputs, so the graph contains backward nodes."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def losses(self, ids: Tensor, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = self(x)
        slope = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        return squares(y) + slope.square().sum(1)


class HookedParameter(Stack):
    """Hooks change gradients: one scales that of a weight, one masks rows of another."""

    def __init__(self, scale: bool) -> None:
        super().__init__(4, 2)
        if scale:
            self.layers[0].weight.register_hook(lambda grad: 0.5 * grad)
        else:
            self.layers[1].weight.register_hook(lambda grad: grad * torch.tensor([[1.0], [0.0]], dtype=grad.dtype))


class ClampedGradient(Stack):
    """A hook that clamps gradients on their way: ∇ Σ w_n L_n is not Σ w_n ∇L_n."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers[0](x)
        h.register_hook(lambda grad: grad.clamp(-0.02, 0.02))
        return self.layers[1](h.tanh())


WEIGHTS = {
    "parts of a packed weight": Chunks,
    "W and its transpose": Transposed,
    "overlapping parts": Slices,
    "weight and bias at once": WeightAndBias,
    "W on the left": LeftProduct,
    "scaled and masked": Scaled,
    "copied": Copied,
    "normalized": Normalized,
    "expanded": Expanded,
    "assembled": Assembled,
    "product of parameters": Product,
    "einsum": Einsum,
    "ensemble": Ensemble,
    "vmap": Vmapped,
    "functional_call": Functional,
    "addmm with factors": AddMm,
    "product into a view": IntoView,
    "prototypes": Prototypes,
    "mask token": MaskToken,
    "hyper-network": HyperNetwork,
    "task vectors": lambda: TaskVectors(first=True),
    "task vectors, looked up late": lambda: TaskVectors(first=False),
    "custom function with a weight": CustomWeight,
    "hidden parameters": lambda: HiddenUse(also_open=False),
    "hidden use of a parameter": lambda: HiddenUse(also_open=True),
    "norm of a weight in the losses": Penalty,
    "gradient penalty": GradientPenalty,
    "hook that scales a gradient": lambda: HookedParameter(scale=True),
    "hook that masks a gradient": lambda: HookedParameter(scale=False),
}
