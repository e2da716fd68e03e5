"""Runs whose models translate together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model.ensemble import Ensemble
from cats.nmt.model.transformer import Transformer
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trained_model import TrainedModel


def load_together(runs: Sequence[Path], checkpoint: str = "best", *, quiet: bool = False) -> list[TrainedModel]:
    """A model of each run; all have the vocabulary and the tags of the first one.

    Args:
        checkpoint, quiet: see ``RunDirectory.load_model``.

    Raises:
        UserError: a run cannot be used, or has another vocabulary or other tags.
    """
    trained = [RunDirectory(run).load_model(checkpoint, quiet=quiet) for run in runs]
    check_vocabularies(runs, [each.tokenizer for each in trained])
    return trained


def together(trained: Sequence[TrainedModel]) -> Transformer | Ensemble:
    """What translates: the model itself, or the ensemble of several."""
    return trained[0].model if len(trained) == 1 else Ensemble(each.model for each in trained)


def check_vocabularies(runs: Sequence[Path | str], tokenizers: Sequence[Tokenizer]) -> None:
    """Raises `UserError` unless all models have the vocabulary and the tags of the first one."""
    for run, tokenizer in zip(runs, tokenizers, strict=True):
        if (tokenizer.digest(), tokenizer.tags) != (tokenizers[0].digest(), tokenizers[0].tags):
            what = "other tags" if tokenizer.digest() == tokenizers[0].digest() else "another vocabulary"
            raise UserError(
                f"{run} has {what} than {runs[0]}: models that translate together need the same tokenizer; train them "
                "on the same corpus with the same [tokenizer], such as with other seeds only"
            )
