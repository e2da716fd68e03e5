"""The losses of one of the batches of a step."""

from __future__ import annotations

import torch
from torch import nn

import cats
from cats.integrations.losses import BatchLosses


def test_a_process_without_examples_has_a_total_of_zero_on_the_device_of_the_parameters():
    optimizer = cats.CATS(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), ["az", "be"])
    total = BatchLosses({}).total(optimizer)
    assert total.shape == () and total == 0
    optimizer = cats.CATS(torch.optim.SGD([nn.Parameter(torch.ones(1, device="meta"))], lr=1.0), ["az", "be"])
    assert BatchLosses({}).total(optimizer).device.type == "meta"
