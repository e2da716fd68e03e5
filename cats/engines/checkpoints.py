"""Reading what ``torch.utils.checkpoint(use_reentrant=False)`` recomputes before the node reads it that needs it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.utils import checkpoint


class _Reader(threading.local):
    reads_first = False


_reader = _Reader()


class _Handles(dict[Any, Any]):
    """{backward pass: handle of a recomputed tensor}. The checkpoint writes None when the tensor has been read."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if value is not None or not _reader.reads_first:
            super().__setitem__(key, value)


def read_saved(node: Any, name: str) -> Any:
    """``node._saved_NAME``: a tensor, or a tuple of them, that a node keeps for its backward pass and can read again.

    A checkpoint forgets a tensor that it recomputed when it is read, and raises an error when it is read again in the
    same backward pass.
    """
    raw = getattr(node, f"_raw_saved_{name}")
    for each in raw if isinstance(raw, tuple) else [raw]:
        holder: Any = getattr(each, "data", None)
        if type(holder).__module__ == checkpoint.__name__ and type(holder.handles) is dict:
            holder.handles = _Handles(holder.handles)
    _reader.reads_first = True
    try:
        return getattr(node, f"_saved_{name}")
    finally:
        _reader.reads_first = False


# torch 2.6 does not show the holder that a node keeps, so there the holders of all checkpoints have these handles.
if not hasattr(torch._C._autograd.SavedTensor, "data"):

    class _Holder(checkpoint._Holder):
        """What a node in a checkpoint keeps instead of a tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.handles = _Handles(self.handles)

    checkpoint._Holder = _Holder  # type: ignore[misc]
