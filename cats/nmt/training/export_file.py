"""model.safetensors: the parameters of an exported model, what it was trained with, and a checksum of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cats import __version__
from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write, open_regular
from cats.nmt.training.origin import Origin

_CHECKSUM = "sha256"  # its key in the metadata. Models that earlier versions exported have none.


def write(path: Path, parameters: Mapping[str, Tensor], origin: Origin, tasks: list[str]) -> None:
    """Writes an exported model.

    Args:
        parameters: {name: contiguous tensor on the CPU}; no two of them share memory.
        tasks: the names of the tasks that it was trained on.

    Raises:
        UserError: the file cannot be written.
    """
    from safetensors.torch import save

    about = {"format": "pt", "cats": __version__, "tasks": json.dumps(tasks), "digest": origin.digest}
    about["origin"] = json.dumps(origin.to_state())
    about[_CHECKSUM] = _checksum(parameters, about)
    atomic_write(path, save(dict(parameters), about))


def read(path: Path) -> tuple[dict[str, Tensor], Origin]:
    """The parameters and the origin of an exported model.

    Raises:
        UserError: the file cannot be read, or was changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = _metadata(path)
    try:
        parameters = load_file(path)
        if about.keys() & {"origin", _CHECKSUM} and about.pop(_CHECKSUM, "") != _checksum(parameters, about):
            raise ValueError("the checksum is wrong")
        state = json.loads(about["origin"]) if "origin" in about else {"digest": about.get("digest", "")}
        return parameters, Origin.of_state(state)
    except (SafetensorError, AttributeError, TypeError, ValueError, RecursionError):
        raise _damaged(path) from None


def task_names(path: Path) -> list[str]:
    """The names of the tasks that an exported model was trained on.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    try:
        names = json.loads(_metadata(path).get("tasks", "[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path)
    return names


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError:
        raise _damaged(path) from None


def _checksum(parameters: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(parameters):
        tensor = parameters[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or not an exported model; export the run again")
