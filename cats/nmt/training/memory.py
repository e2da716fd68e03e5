"""Settings that need more memory than there is: what to say before training, and when the GPU runs out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError


def check_memory(config: Config, vocab_size: int, processes: int, device: torch.device) -> None:
    """Refuses a model or a batch that cannot fit: without this check, the system might kill the process.

    The estimates are low, so that nothing is refused that would fit.

    Args:
        processes: the number of processes that share a batch.

    Raises:
        UserError: the memory of the device is too small.
    """
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    model, sampling, train = config.model, config.sampling, config.train
    width, layers = model.d_model, model.encoder_layers + model.decoder_layers
    parameters = width * (vocab_size + layers * (4 * width + 2 * model.ffn) + model.decoder_layers * 4 * width)
    held = 1 if train.checkpoint_activations else 8  # tensors of d_model numbers that a layer holds for the backward
    tokens = sampling.batch_tokens // (train.accumulate * processes)
    for needed, what, advice in (
        (16 * parameters, f"the model, with at least {parameters:,} parameters,", "model.d_model, model.ffn or layers"),
        (4 * held * tokens * layers * width, f"a batch of {sampling.batch_tokens:,} tokens", "sampling.batch_tokens"),
    ):
        if needed > there:
            raise UserError(
                f"{what} needs more than {needed >> 30:,} GiB of memory, and there are {there >> 30:,}; lower {advice}"
            )


@contextmanager
def out_of_memory_advice(run: Path, where: str) -> Iterator[None]:
    """Turns torch's out-of-memory error into one that names the settings to change.

    Args:
        run: the run directory. where: what the memory was needed for, such as "update 7".

    Raises:
        UserError: the block ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"{run}: out of memory in {where}; lower sampling.batch_tokens, raise train.accumulate, or set "
            "train.checkpoint_activations=true or train.precision=bf16"
        ) from None
