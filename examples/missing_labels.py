"""Several labels per example, most of them missing: tasks that are absent from a batch.

A classifier predicts three properties of an input. Few examples have all three labels: "colour" is known for 90 % of
them, "shape" for 30 %, and "size" for 2 %, so that a quarter of the batches has no label for "size" at all. The loss of
a task is the mean over the examples that have its label. A task without one is left out of `losses`. CATS gives "size"
the least weight; a likely reason is that a gradient from one or two labels is noisy.

Here the other two gain, and "size" loses some accuracy. If the rare task matters, set a `prior` that favours it, or a
larger `floor`, and compare.

    python examples/missing_labels.py

Prints, means over three seeds:

    task    batches with a label   accuracy: equal weights   CATS   its weight
    colour                 200.0                      0.93   0.95         0.45
    shape                  200.0                      0.90   0.91         0.34
    size                   144.3                      0.68   0.66         0.21
"""

import torch
from torch import nn
from torch.nn import functional as F

import cats

KNOWN = {"colour": 0.9, "shape": 0.3, "size": 0.02}  # the share of the examples that have this label
CLASSES = 3
MISSING = -1


def make_data(examples, answers):
    x = torch.randn(examples, 8)
    labels = {task: (x @ answer).argmax(1) for task, answer in answers.items()}
    return x, labels


def train(weighting, seed, steps=200):
    torch.manual_seed(seed)
    answers = {task: torch.randn(8, CLASSES) for task in KNOWN}
    x, labels = make_data(4096, answers)
    for task, share in KNOWN.items():
        labels[task][torch.rand(len(x)) > share] = MISSING

    trunk = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    heads = nn.ModuleDict({task: nn.Linear(64, CLASSES) for task in KNOWN})
    base = torch.optim.AdamW([*trunk.parameters(), *heads.parameters()], lr=1e-3)
    optimizer = cats.MultiTask(base, list(KNOWN), weighting, shared=trunk.parameters())

    seen = dict.fromkeys(KNOWN, 0)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        hidden = trunk(x[batch])
        losses = {}
        for task, head in heads.items():
            label = labels[task][batch]
            known = label != MISSING
            if known.any():  # the mean over no examples would be nan
                losses[task] = F.cross_entropy(head(hidden[known]), label[known])
                seen[task] += 1
        optimizer.zero_grad()
        optimizer.backward(losses)  # any non-empty subset of the tasks
        optimizer.step()

    fresh, right = make_data(2000, answers)
    with torch.no_grad():
        hidden = trunk(fresh)
        accuracy = {task: (head(hidden).argmax(1) == right[task]).float().mean().item() for task, head in heads.items()}
    return seen, accuracy, optimizer.alpha


def main(seeds=3):
    plain = [train(cats.weighting.Static([1, 1, 1]), seed) for seed in range(seeds)]
    ours = [train(cats.weighting.CATS(), seed) for seed in range(seeds)]  # the same as cats.CATS(base, tasks)
    print("task    batches with a label   accuracy: equal weights   CATS   its weight")
    for task in KNOWN:
        seen, accuracy, weight = (sum(run[i][task] for run in ours) / seeds for i in range(3))
        equal = sum(run[1][task] for run in plain) / seeds
        print(f"{task:<7} {seen:20.1f} {equal:25.2f} {accuracy:6.2f} {weight:12.2f}")


if __name__ == "__main__":
    main()
