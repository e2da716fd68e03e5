"""Checkpoints: whole or not there, and read without running anything that is inside."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings, containers of them; an older file stays until the new one is whole.

    Raises:
        UserError: the disk is full or the folder cannot be written; the older file is intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """The state that `save` wrote, with all tensors on the CPU. Pickled code is refused, not run.

    Raises:
        UserError: the file is missing, unreadable, damaged, or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    except Exception as error:  # torch names damage in many ways: RuntimeError, UnpicklingError, EOFError, ...
        raise UserError(f"{path} is damaged or not a checkpoint; restore it from a copy or train again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: it holds no dictionary")
    return state
