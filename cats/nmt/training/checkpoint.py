"""Checkpoint files. They are written atomically, verified when they are read, and never run code that is inside."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_file, hard_link, open_regular
from cats.nmt.training.origin import Origin

# torch writes a checksum per tensor but does not verify it, so we append one of the whole file. A CRC-32 finds all
# changes of up to 32 adjacent bits and misses one in 2^32 others; it takes an eighth of the time of SHA-256.


class Damaged(UserError):
    """A file that is truncated, changed, or no checkpoint at all."""


class _ChecksumFile:
    """A file to write to that computes the checksum of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.flush, self.sum = file, file.flush, 0

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.sum = zlib.crc32(data, self.sum)


def save(path: Path, state: dict[str, Any], *, older: Path | None = None) -> None:
    """Writes a state of tensors, numbers, strings and containers of them. It is streamed, without a copy in memory.

    An existing file is replaced when the new one is complete.

    Args:
        older: keep the replaced file under this name.

    Raises:
        UserError: the disk is full, or the folder cannot be written. The existing file is intact.
    """
    with atomic_file(path) as file:
        summing = _ChecksumFile(file)
        try:
            torch.save(state, cast(BinaryIO, summing))
        except RuntimeError as error:  # torch's writer hides the reason of a failed write in the context
            if isinstance(error.__context__, OSError | KeyboardInterrupt):
                raise error.__context__ from None
            raise
        file.write(_seal(summing.sum))
        if older is not None and path.exists():
            hard_link(path, older)


def load(path: Path) -> dict[str, Any]:
    """Reads the state that `save` wrote, with all tensors on the CPU. Pickled code is refused.

    Raises:
        Damaged: the file differs from what was written, or it is no checkpoint.
        UserError: the file is missing or unreadable.
    """
    try:
        if not _sealed(path):
            raise ValueError("the checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("another type")
    except UserError:  # no regular file
        raise
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises many types for a damaged file: RuntimeError, UnpicklingError, ...
        raise Damaged(f"{path} is damaged, not a checkpoint, or one of an older version; train again") from error
    return cast(dict[str, Any], state)


def _seal(checksum: int) -> bytes:
    return b"\ncrc32 %08x" % checksum


def _sealed(path: Path) -> bool:
    """Whether the checksum at the end of the file is right."""
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size - len(_seal(0))
        found = 0
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found = zlib.crc32(block, found)
            left -= len(block)
        return left == 0 and file.read() == _seal(found)


def newest(last: Path, previous: Path) -> tuple[dict[str, Any], str]:
    """The state in `last`. If that file is damaged or missing: the state in `previous`.

    Then `last` is replaced by `previous`, so that a damaged file does not become the next previous.pt.

    Returns:
        The state, and what is wrong with `last`, or "".

    Raises:
        UserError: neither file can be read.
    """
    try:
        if last.exists() or not previous.exists():
            return load(last), ""
        problem = f"{last} is missing"
    except UserError as error:
        if not previous.exists():
            raise
        problem = str(error).rpartition(";")[0]
    try:
        state = load(previous)
    except Damaged:
        raise Damaged(f"{problem}, and {previous.name} is damaged; train again") from None
    hard_link(previous, last)
    return state, problem


def average(paths: list[Path]) -> dict[str, Any]:
    """A checkpoint whose model has the mean of the parameters of these checkpoints, computed in float64.

    The rest is that of the first checkpoint.

    Raises:
        UserError: a file cannot be read, or belongs to another model or corpus than the first.
    """
    sums: dict[str, Tensor] = {}
    first: tuple[Origin, dict[str, Tensor]] | None = None
    for path in paths:
        state = load(path)
        try:
            # As RunDirectory.read_model: with train.ema, the model of last.pt is the average of its parameters.
            model = (state.get("average") or {}).get("parameters", state["model"])
            origin = Origin.of_state(state)
            shapes = {name: tensor.shape for name, tensor in model.items()}
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{path} has no model of a run") from None
        first = first or (origin, model)
        like, other = first
        if (
            shapes != {name: tensor.shape for name, tensor in other.items()}
            or origin.digest != like.digest
            or (origin.tokenizer and like.tokenizer and origin.tokenizer != like.tokenizer)
        ):
            raise UserError(f"{path} belongs to another model or corpus than {paths[0]}: they cannot be averaged")
        for name, tensor in model.items():
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    assert first is not None
    origin, model = first
    mean = {name: (total / len(paths)).to(model[name].dtype) for name, total in sums.items()}
    return {"model": mean, **origin.to_state()}
