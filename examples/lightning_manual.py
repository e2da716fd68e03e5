"""Lightning with manual optimization: `self.optimizers()` has `backward(losses)`.

In automatic optimization Lightning takes one loss from `training_step` and calls its backward itself. With
`automatic_optimization = False` the step is yours, and the optimizer is used as without Lightning. Its weights are part
of Lightning's checkpoints. It needs `pip install ".[integrations]"`.

    python examples/lightning_manual.py

Prints:

    steps 96
    loss of slow: 0.57 -> 0.09
    loss of fast: 0.43 -> 0.02
    weights: slow 0.36, fast 0.64
"""

import lightning
import torch
from torch import nn

import cats

TASKS = ["slow", "fast"]


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
        self.history = []  # the losses of each step

    def configure_optimizers(self):
        return cats.CATS(torch.optim.AdamW(self.parameters(), lr=1e-2), TASKS)

    def training_step(self, batch, batch_index):
        x, y = batch
        losses = dict(zip(TASKS, (self.net(x) - y).square().mean(0), strict=True))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        optimizer.backward(losses)  # instead of self.manual_backward(loss)
        optimizer.step()
        self.history.append(optimizer.statistics["losses"])
        self.log_dict({f"alpha/{task}": weight for task, weight in optimizer.alpha.items()})


def main():
    torch.manual_seed(0)
    x = torch.randn(1024, 8)
    y = torch.sin(torch.tensor([2.0, 1.0]) * (x @ torch.randn(8, 2) / 8**0.5))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True)

    model = Model()
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)

    print(f"steps {trainer.global_step}")
    for task in TASKS:
        print(f"loss of {task}: {model.history[0][task]:.2f} -> {model.history[-1][task]:.2f}")
    alpha = model.optimizers().alpha
    print("weights: " + ", ".join(f"{task} {weight:.2f}" for task, weight in alpha.items()))


if __name__ == "__main__":
    main()
