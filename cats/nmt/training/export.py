"""Exports a trained model as a folder to give to others: model.safetensors, tokenizer.model, config.toml."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from cats import __version__
from cats.nmt.config.toml import to_toml
from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write, is_free
from cats.nmt.training.run import RunDirectory, TrainedModel


def write(out: Path, trained: TrainedModel, tasks: list[str]) -> None:
    """Writes a model to a new or empty folder. Tied weights are written once.

    Args:
        tasks: the names of the tasks that it was trained on. They go into the file's metadata, as does the digest of
            the corpus.

    Raises:
        UserError: the folder is not empty, or it cannot be written.
    """
    from safetensors.torch import save

    if not is_free(out):
        raise UserError(f"{out} exists already; choose another folder")
    weights: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in trained.model.state_dict().items():
        weights.setdefault(tensor.data_ptr(), (name, tensor.cpu().contiguous()))
    about = {"format": "pt", "cats": __version__, "digest": trained.digest, "tasks": json.dumps(tasks)}
    files = RunDirectory(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        trained.tokenizer.save(files.tokenizer_file)
        atomic_write(files.config_file, to_toml(trained.config))
        # Written last: a folder that has this file is complete.
        atomic_write(files.weights_file, save(dict(weights.values()), about))
    except BaseException:
        for path in (files.tokenizer_file, files.config_file):
            path.unlink(missing_ok=True)
        raise
