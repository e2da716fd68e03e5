"""A training loop with accelerate: `accelerator.prepare(optimizer)` has `backward(losses)`.

It takes the place of `accelerator.backward(loss)`: with gradient accumulation it divides the losses, with fp16 it
scales them, and with several processes it averages the gradients. The Accelerator comes from
`cats.integrations.accelerate`; its arguments are those of accelerate. It needs `pip install ".[integrations]"`.

    python examples/accelerate_loop.py          # or: accelerate launch examples/accelerate_loop.py

Prints:

    steps 48, of two batches each
    loss of slow: 0.63 -> 0.30
    loss of fast: 0.45 -> 0.03
    weights: slow 0.42, fast 0.58
"""

import torch
from torch import nn

import cats
from cats.integrations.accelerate import Accelerator

TASKS = ["slow", "fast"]


def main(epochs=6):
    torch.manual_seed(0)
    x = torch.randn(1024, 8)
    y = torch.sin(torch.tensor([2.0, 1.0]) * (x @ torch.randn(8, 2) / 8**0.5))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True)

    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=1e-2), TASKS)

    accelerator = Accelerator(gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    history = []
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                losses = dict(zip(TASKS, (model(x) - y).square().mean(0), strict=True))
                optimizer.backward(losses)  # instead of accelerator.backward(sum(losses.values()))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:  # after every second batch
                history.append(optimizer.statistics["losses"])

    accelerator.print(f"steps {optimizer.statistics['step']}, of two batches each")
    for task in TASKS:
        accelerator.print(f"loss of {task}: {history[0][task]:.2f} -> {history[-1][task]:.2f}")
    accelerator.print("weights: " + ", ".join(f"{task} {weight:.2f}" for task, weight in optimizer.alpha.items()))


if __name__ == "__main__":
    main()
