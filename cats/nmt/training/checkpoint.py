"""Checkpoints: whole or not there, checked when they are read, and read without running anything that is inside."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_file, link

# torch writes a checksum for each tensor and does not look at them; ours stands behind the file that torch reads.
# (A CRC misses one change in 2^32, none of up to 32 bits in a row, and takes an eighth of the time of SHA-256.)


class Damaged(UserError):
    """A checkpoint that is cut short or changed, or no checkpoint at all."""


class _Summing:
    """A file to write, and the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.flush, self.sum = file, file.flush, 0

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.sum = zlib.crc32(data, self.sum)


def save(path: Path, state: dict[str, Any], *, older: Path | None = None) -> None:
    """Writes tensors, numbers, strings, containers of them, tensor by tensor: nothing is held twice.

    An older file stays until the new one is whole, and after that under the name ``older``, if there is one.

    Raises:
        UserError: the disk is full or the folder cannot be written; the older file is intact.
    """
    with atomic_file(path) as file:
        summing = _Summing(file)
        try:
            torch.save(state, cast(BinaryIO, summing))
        except RuntimeError as error:  # of torch's writer, about a write that failed: below it is why
            if isinstance(error.__context__, OSError | KeyboardInterrupt):
                raise error.__context__ from None
            raise
        file.write(_seal(summing.sum))
        if older is not None and path.exists():
            link(path, older)


def load(path: Path) -> dict[str, Any]:
    """The state that `save` wrote, with all tensors on the CPU. Pickled code is refused, not run.

    Raises:
        Damaged: a byte of the file is not what was written, or it is not a checkpoint.
        UserError: the file is missing or unreadable.
    """
    try:
        if not _sealed(path):
            raise ValueError("a byte is not what was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    except Exception as error:  # torch has many names for what it cannot read: RuntimeError, UnpicklingError, ...
        raise Damaged(f"{path} is damaged, not a checkpoint, or one of an older version; train again") from error
    return cast(dict[str, Any], state)


def _seal(checksum: int) -> bytes:
    return b"\ncrc32 %08x" % checksum


def _sealed(path: Path) -> bool:
    """Whether every byte is what was written."""
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - len(_seal(0))
        found = 0
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found = zlib.crc32(block, found)
            left -= len(block)
        return left == 0 and file.read() == _seal(found)


def newest(last: Path, previous: Path) -> tuple[dict[str, Any], str]:
    """The state in `last`, or in `previous` where that one is damaged or missing, and then what is wrong.

    What is damaged is replaced by what is not, so that it does not become the next previous.pt.

    Raises:
        UserError: neither can be read.
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
        raise Damaged(f"{problem}, and so is {previous.name}; train again") from None
    link(previous, last)
    return state, problem


def average(paths: list[Path]) -> dict[str, Any]:
    """The first checkpoint, with the mean of all their parameters, taken in float64, for its model.

    Raises:
        UserError: one cannot be read, or is of another model or corpus than the first.
    """
    result: dict[str, Any] = {}
    sums: dict[str, Tensor] = {}
    for path in paths:
        state = load(path)
        try:
            like = state["digest"], {name: tensor.shape for name, tensor in state["model"].items()}
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{path} holds no model of a run") from None
        result = result or state
        if like != (result["digest"], {name: tensor.shape for name, tensor in result["model"].items()}):
            raise UserError(f"{path} is of another model or corpus than {paths[0]}: they have no average")
        for name, tensor in state["model"].items():
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    model = {name: (total / len(paths)).to(result["model"][name].dtype) for name, total in sums.items()}
    return {"model": model, "digest": result["digest"]}
