"""A trained model as a folder to pass on: model.safetensors, tokenizer.model, config.toml."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from cats import __version__
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import to_toml
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write
from cats.nmt.model.transformer import Transformer
from cats.nmt.training.metrics import read_metrics

WEIGHTS = "model.safetensors"


def write(
    out: Path, config: Config, tokenizer: Tokenizer, model: Transformer, *, digest: str, tasks: list[str]
) -> None:
    """Writes a model to a new or empty folder; tied weights stand there once.

    digest: of the corpus it was trained on. tasks: their names. Both go into the file's metadata.

    Raises:
        UserError: the folder has something in it or cannot be written.
    """
    from safetensors.torch import save

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another folder")
    weights: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        weights.setdefault(tensor.data_ptr(), (name, tensor.cpu().contiguous()))
    about = {"format": "pt", "cats": __version__, "digest": digest, "tasks": json.dumps(tasks)}
    out.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer.save(out / "tokenizer.model")
        atomic_write(out / "config.toml", to_toml(config))
        atomic_write(out / WEIGHTS, save(dict(weights.values()), about))  # the last: where it is, the folder is whole
    except BaseException:
        for name in ("tokenizer.model", "config.toml"):
            (out / name).unlink(missing_ok=True)
        raise


def read(path: Path, model: Transformer) -> dict[str, str]:
    """Fills the model with what `write` wrote; the metadata.

    Raises:
        UserError: the file is damaged, or of a model of another shape.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
        load_model(model, path)
    except SafetensorError:
        raise UserError(f"{path} is damaged or no safetensors file; export it again") from None
    except RuntimeError:
        raise UserError(f"{path} does not fit {path.parent}/config.toml: it is of another run or version") from None
    return about


def tasks(run: Path) -> list[str]:
    """The names of the tasks that a run, or what was exported of it, was trained on; none where it does not tell."""
    if (run / WEIGHTS).is_file():
        from safetensors import safe_open

        with safe_open(run / WEIGHTS, "pt") as file:
            return [str(name) for name in json.loads((file.metadata() or {}).get("tasks", "[]"))]
    return list(
        dict.fromkeys(name for record in read_metrics(run / "metrics.jsonl") for name in record.get("alpha", {}))
    )
