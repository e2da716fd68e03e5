"""Mixed precision, accumulation and clipping: the usual lines, in the usual order.

Each step has four micro-batches. `optimizer.backward()` adds their gradients and losses, as `loss.backward()` does. So
the losses are divided by the number of micro-batches. They are not scaled: the optimizer gets the GradScaler and does
it. After `scaler.unscale_()` the combined gradient is in `p.grad`, where torch clips it.

    python examples/amp_accumulation.py

Prints:

    steps 60, of which the scaler skipped 2; scale now 262144
    loss of easy: 0.47 -> 0.01
    loss of hard: 0.49 -> 0.01
"""

import torch
from torch import nn

import cats

TASKS = ["easy", "hard"]
MICRO_BATCHES = 4


def main(steps=60):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    directions = torch.randn(4, 2) / 2
    frequencies = torch.tensor([1.0, 2.0])

    model = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2)).to(device)
    optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=1e-2), TASKS)
    # float16 has no numbers above 65504. A scale that is too large gives infinite gradients: the scaler halves it, and
    # the optimizer skips the step.
    scaler = torch.amp.GradScaler(device, init_scale=2.0**20)

    for step in range(steps):
        for micro_batch in range(MICRO_BATCHES):
            x = torch.randn(32, 4)
            y = torch.sin(frequencies * (x @ directions))
            with torch.autocast(device, dtype=torch.float16):
                prediction = model(x.to(device))
            errors = (prediction.float() - y.to(device)).square().mean(0) / MICRO_BATCHES
            losses = dict(zip(TASKS, errors, strict=True))
            optimizer.backward(losses, scaler=scaler, last=micro_batch == MICRO_BATCHES - 1)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        last = optimizer.statistics["losses"]  # of the whole step
        if step == 0:
            first = last

    skipped = optimizer.statistics["skipped"]
    print(f"steps {steps}, of which the scaler skipped {skipped}; scale now {scaler.get_scale():.0f}")
    for task in TASKS:
        print(f"loss of {task}: {first[task]:.2f} -> {last[task]:.2f}")


if __name__ == "__main__":
    main()
