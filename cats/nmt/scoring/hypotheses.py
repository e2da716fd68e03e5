"""The folder hyp/ of an evaluated run: its files, and whether they are still those that were scored."""

from __future__ import annotations

from pathlib import Path

from cats.nmt.config.schema import Evaluate
from cats.nmt.data.corpus import Split, evenly_spread
from cats.nmt.errors import UserError, command
from cats.nmt.files import file_digest, one_line, read_output
from cats.nmt.scoring.scores import Scores
from cats.nmt.training.run import RunDirectory


def translated_rows(split: Split, headline: str | None, settings: Evaluate) -> list[int]:
    """The indices of the lines of a split that are translated. They are the same for every run with these settings.

    Args:
        headline: the stratum that results are reported on, if the corpus has one.
    """
    if settings.search == "none":
        return []
    rows = split.rows(headline) if settings.strata == "headline" else []
    return evenly_spread(rows or split.rows(None), settings.lines)


def digests(run: Path, split: str, checkpoint: str) -> dict[str, str]:
    """The SHA-256 of each file of a split, by the name of the file."""
    found = sorted(RunDirectory(run).hypotheses(checkpoint).glob(f"{split}.*"))
    return {path.name: file_digest(path) for path in found if path.is_file()}


def read(run: Path, scores: Scores, task: str, suffix: str) -> list[str]:
    """The lines of one file of the best checkpoint on the test split.

    Args:
        scores: the scores of this checkpoint.
        suffix: see ``cats.nmt.scoring.evaluate``.

    Raises:
        UserError: the file is missing, is not UTF-8, or is not the one that was scored.
    """
    path = RunDirectory(run).hypotheses_file(task, suffix)
    try:
        if scores.files.get(path.name) not in (None, file_digest(path)):
            raise UserError(f"{path} has changed since it was scored; make it again with: {command('evaluate', run)}")
        return [*map(one_line, read_output(path))]  # older versions wrote carriage returns
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: {command('evaluate', run)}") from None
