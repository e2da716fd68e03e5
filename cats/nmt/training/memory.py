"""Settings that need more memory than there is: what to say before training, and when the GPU runs out of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError
from cats.nmt.training import processes
from cats.nmt.training.sharding import shards_of_model


def check_memory(config: Config, vocab_size: int, device: torch.device) -> None:
    """Refuses a model or a batch that cannot fit: without this check, the system might kill the process.

    The estimates are low, so that nothing is refused that would fit.

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
    tokens = sampling.batch_tokens // (train.accumulate * processes.world_size())
    shards = shards_of_model(train)
    for needed, what, advice in (
        (
            (20 if train.ema else 16) * parameters // shards,
            f"the model, with at least {parameters:,} parameters,",
            "model.d_model, model.ffn or layers",
        ),
        (4 * held * tokens * layers * width, f"a batch of {sampling.batch_tokens:,} tokens", "sampling.batch_tokens"),
    ):
        if needed > there:
            raise UserError(
                f"{what} needs more than {needed >> 30:,} GiB of memory, and there are {there >> 30:,}; lower {advice}"
            )


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held: of the GPU, or else of main memory. None: the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def out_of_memory(run: Path, where: str, engine: str, instead: str, tasks: int) -> UserError:
    """What to raise for torch's out-of-memory error: it names the settings to change.

    Args:
        run: the run directory. where: what the memory was needed for, such as "update 7".
        engine: that of outer steps; "" if there are none. instead: one that may need less; "" if there is none.
        tasks: the most tasks in an update.
    """
    more = ""
    if engine == "per_task":
        other = f"set method.engine={instead}, or " if instead else ""
        more = f"; the engine per_task keeps {tasks} gradients: {other}lower sampling.tasks_per_update"
    elif engine:
        more = f"; the memory of the engine {engine} does not grow with sampling.tasks_per_update ({tasks})"
    return UserError(
        f"{run}: out of memory in {where}; lower sampling.batch_tokens, raise train.accumulate, or set "
        f"train.checkpoint_activations=true or train.precision=bf16{more}"
    )
