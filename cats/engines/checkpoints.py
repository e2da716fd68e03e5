"""Reading what ``torch.utils.checkpoint(use_reentrant=False)`` recomputes before the node reads it that needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils import checkpoint


class _Reader(threading.local):
    reads_first = False


_reader = _Reader()


@contextmanager
def first_read() -> Iterator[None]:
    """In the block, this thread reads tensors that nodes keep for their backward pass. The nodes can read them again.

    A checkpoint forgets a tensor that it recomputed when it is read, and raises an error when it is read again in the
    same backward pass.
    """
    _reader.reads_first = True
    try:
        yield
    finally:
        _reader.reads_first = False


class _Handles(dict[Any, Any]):
    """{backward pass: handle of a recomputed tensor}. The checkpoint writes None when the tensor has been read."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if value is not None or not _reader.reads_first:
            super().__setitem__(key, value)


class _Holder(checkpoint._Holder):
    """What a node in a checkpoint keeps instead of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.handles = _Handles(self.handles)


# Replaced for every checkpoint, because torch 2.6 does not show the holder that a node keeps.
checkpoint._Holder = _Holder  # type: ignore[misc]
