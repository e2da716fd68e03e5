"""Exports a trained model as a folder to give to others: model.safetensors, tokenizer.model, config.toml, README.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write, is_free, make_folder
from cats.nmt.training import export_file
from cats.nmt.training.origin import settings_of
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trained_model import TrainedModel


def write(out: Path, trained: TrainedModel, tasks: list[str], card: str = "") -> None:
    """Writes a model to a new or empty folder. Tied weights are written once.

    Args:
        tasks: the names of the tasks that it was trained on. They go into the file's metadata.
        card: the text of README.md, such as that of ``cats.nmt.scoring.model_card``. Empty: no such file.

    Raises:
        UserError: the folder is not empty, or it cannot be written.
    """
    weights: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in trained.model.state_dict().items():
        weights.setdefault(tensor.data_ptr(), (name, tensor.cpu().contiguous()))
    files = RunDirectory(out)
    # The settings of this config.toml, which may have been changed since the training.
    origin = dataclasses.replace(trained.origin, settings=settings_of(trained.config))
    written = [files.tokenizer_file, files.config_file, files.card_file, files.weights_file]
    with filled(out, [path.name for path in written]):
        trained.tokenizer.save(files.tokenizer_file)
        files.write_config(trained.config)
        if card:
            atomic_write(files.card_file, card)
        # Written last: a folder that has this file is complete.
        export_file.write(files.weights_file, dict(weights.values()), origin, tasks)


@contextmanager
def filled(out: Path, names: Iterable[str]) -> Iterator[None]:
    """Makes a new folder, or takes an empty one. If the block fails, its files of these names are removed again.

    Raises:
        UserError: the folder is not empty.
    """
    if not is_free(out):
        raise UserError(f"{out} exists already; choose another folder")
    make_folder(out)
    try:
        yield
    except BaseException:
        for name in names:
            (out / name).unlink(missing_ok=True)
        raise
