"""A hundred tasks in one batch: one forward pass, and one backward pass for the inner products of all of them.

The batch has rows of a hundred languages. The network reads a vector for the language of each row, and is otherwise
shared. `backward()` gets a loss for each row, and the language of each row. Every fifth step moves the weights: it
needs the inner product of each language's gradient with the combined one. The engine "one_pass" takes all of them from
the one backward pass that there is anyway, and forms no gradient of a single language. Ten of the languages have noisy
labels.

    python examples/hundred_languages.py

Prints:

    100 steps, 20 of them moved the weights, by the engine one_pass
    passes through the network: 100 forward, 113 backward
    weights, equal ones being 1.00: clean languages 1.07, noisy languages 0.39
"""

import torch
from torch import nn

import cats

LANGUAGES = [f"language {n}" for n in range(100)]
NOISY = 10  # the last ones
STEPS = 100


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.language = nn.Embedding(len(LANGUAGES), 16)
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, x, ids):
        return self.layers(x + self.language(ids))


def main():
    torch.manual_seed(0)
    answer = torch.randn(16, 4) / 4
    own = torch.randn(len(LANGUAGES), 4) / 2  # what is different in each language
    noise = torch.full((len(LANGUAGES), 1), 0.1)
    noise[-NOISY:] = 2.0

    net = Net()
    optimizer = cats.CATS(torch.optim.AdamW(net.parameters(), lr=5e-3), LANGUAGES)
    backward_passes = 0

    def count(gradient):
        nonlocal backward_passes
        backward_passes += 1

    for _ in range(STEPS):
        ids = torch.arange(len(LANGUAGES)).repeat(4)  # 4 rows of each language
        x = torch.randn(len(ids), 16)
        y = x @ answer + own[ids] + noise[ids] * torch.randn(len(ids), 4)
        prediction = net(x, ids)
        prediction.register_hook(count)
        losses = (prediction - y).square().mean(1)  # a loss for each row
        optimizer.zero_grad()
        optimizer.backward(losses, tasks=ids)
        optimizer.step()

    statistics = optimizer.statistics
    print(
        f"{STEPS} steps, {statistics['task_gradient_steps']} of them moved the weights, "
        f"by the engine {statistics['engine']}"
    )
    # The few more: now and then the engine checks, by passes for some of the languages, that rows do not mix.
    print(f"passes through the network: {STEPS} forward, {backward_passes} backward")
    weights = len(LANGUAGES) * torch.tensor(list(optimizer.alpha.values()))
    clean, noisy = weights[:-NOISY].mean(), weights[-NOISY:].mean()
    print(f"weights, equal ones being 1.00: clean languages {clean:.2f}, noisy languages {noisy:.2f}")


if __name__ == "__main__":
    main()
