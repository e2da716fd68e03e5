"""The device and the CPU threads that models are trained and used with."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(threads: int, d_model: int) -> None:
    """Sets the number of CPU threads. 0: one for models narrower than 256, which gain nothing from more, else torch's.

    Args:
        threads: the setting `train.threads`.
        d_model: the width of the model.
    """
    if threads or d_model < 256:
        torch.set_num_threads(threads or 1)
