"""What to say when the GPU runs out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cats.nmt.errors import UserError


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
