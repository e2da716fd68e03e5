"""Fine-tuning with adapters: the tasks are compared by the gradients of the small part that is trained.

The base network is frozen. Each of its linear layers gets a LoRA adapter (Hu et al., 2021, arXiv 2106.09685): a product
of two narrow matrices that is added to the frozen one. The tasks share the adapters. Only the adapters are in the
optimizer, so the gradients of the tasks have the size of the adapters, not of the network. The same works with models
of the library `peft`: give the optimizer the parameters that require a gradient.

    python examples/lora_adapters.py

Prints:

    trained: 1,664 of 22,658 parameters
    error on fresh data: frozen network 1.14, with adapters 0.14
    weights: summarise 0.45, translate 0.45, chat (noisy) 0.10
"""

import torch
from torch import nn

import cats

TASKS = ["summarise", "translate", "chat (noisy)"]
NOISE = {"summarise": 0.05, "translate": 0.05, "chat (noisy)": 1.0}
WIDTH, RANK = 128, 4


class LoRA(nn.Module):
    """A frozen linear layer W, and the trained B A in W + B A. B begins at zero: at first nothing has changed."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.A = nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x):
        return self.layer(x) + x @ self.A.T @ self.B.T


def network():
    return nn.Sequential(nn.Linear(32, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))


def main(steps=150):
    torch.manual_seed(0)
    net = network().requires_grad_(False)
    wanted = network().requires_grad_(False)  # what fine-tuning should find: a change of low rank in the middle layer
    wanted.load_state_dict(net.state_dict())
    wanted[2].weight += torch.randn(WIDTH, RANK) @ torch.randn(RANK, WIDTH) / 16
    centres = {task: torch.randn(32) for task in TASKS}  # each task has other inputs

    def fresh(task, rows=64):
        x = centres[task] + torch.randn(rows, 32)
        return x, wanted(x)

    def error():
        with torch.no_grad():
            data = [fresh(task, rows=1000) for task in TASKS]
            return sum((net(x) - y).square().mean() / y.var() for x, y in data).item() / len(TASKS)

    before = error()
    for i in (0, 2):
        net[i] = LoRA(net[i])
    adapters = [p for p in net.parameters() if p.requires_grad]
    optimizer = cats.CATS(torch.optim.AdamW(adapters, lr=1e-2), TASKS)

    for _ in range(steps):
        losses = {}
        for task in TASKS:
            x, y = fresh(task)
            losses[task] = (net(x) - y - NOISE[task] * torch.randn_like(y)).square().mean()
        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()

    trained, everything = (sum(p.numel() for p in some) for some in (adapters, net.parameters()))
    print(f"trained: {trained:,} of {everything:,} parameters")
    print(f"error on fresh data: frozen network {before:.2f}, with adapters {error():.2f}")
    print("weights: " + ", ".join(f"{task} {weight:.2f}" for task, weight in optimizer.alpha.items()))


if __name__ == "__main__":
    main()
