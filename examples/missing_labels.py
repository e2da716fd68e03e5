"""Several labels per example, most of them missing: tasks that are absent from a batch.

A classifier predicts three properties of an input. Few examples have all three labels: "colour" is known for 90 % of
them, "shape" for 30 %, and "size" for 2 %, so that a quarter of the batches has no label for "size" at all. The loss of
a task is the mean over the examples that have its label. A task without one is left out of `losses`. CATS gives "size"
the least weight; a likely reason is that a gradient from one or two labels is noisy.

    python examples/missing_labels.py

Prints:

    task    batches with a label   accuracy   weight
    colour                   200       0.94     0.44
    shape                    200       0.90     0.35
    size                     146       0.61     0.21
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


def main(steps=200):
    torch.manual_seed(0)
    answers = {task: torch.randn(8, CLASSES) for task in KNOWN}
    x, labels = make_data(4096, answers)
    for task, share in KNOWN.items():
        labels[task][torch.rand(len(x)) > share] = MISSING

    trunk = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    heads = nn.ModuleDict({task: nn.Linear(64, CLASSES) for task in KNOWN})
    base = torch.optim.AdamW([*trunk.parameters(), *heads.parameters()], lr=1e-3)
    optimizer = cats.CATS(base, list(KNOWN), shared=trunk.parameters())

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
    print("task    batches with a label   accuracy   weight")
    with torch.no_grad():
        hidden = trunk(fresh)
        for task, head in heads.items():
            accuracy = (head(hidden).argmax(1) == right[task]).float().mean()
            print(f"{task:<7} {seen[task]:20d} {accuracy:10.2f} {optimizer.alpha[task]:8.2f}")


if __name__ == "__main__":
    main()
