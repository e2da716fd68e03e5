"""metrics.jsonl: the numbers of a run, one JSON object per line. See ``boards`` for who else gets them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write, finite_or_none, read_file, unwritable
from cats.nmt.screen import tell
from cats.nmt.training.boards import Board, TensorBoard


@dataclass(frozen=True)
class LossRecord:
    """The line that is written every `train.log_every` updates. The names of the fields are the keys in the file.

    Attributes:
        step: updates so far.
        loss: the mean of `losses`.
        losses: {task: mean nll per target token since the last such line, in nats}.
        lr: the learning rate of the last update.
        alpha: {task: weight} of the last update.
        prior: {task: share of that update's tokens}, which alpha is relative to; empty if it does not follow them.
        multipliers: {name: value} of the weighting's multipliers.
        dots, sqnorms, skipped: see ``cats.MultiTask.statistics``. dots and sqnorms may be None.
        tokens: {task: target tokens since the last such line}.
        examples: {task: sentence pairs since the last such line}. None: since then, training was resumed from a
            checkpoint of an older version, which did not count them.
        tokens_per_second: target tokens of all tasks per second of training since the last such line.
        seconds: seconds of training so far.
        cpu_seconds: seconds of processor time of the main process in them. On a busy machine it says more than the
            clock. nan on a GPU, and after a resume from a checkpoint that did not record it.
        engine: how the last outer step computed `dots`; "" before the first one.
        peak_memory: the most bytes that the main process has held since it started: of the GPU, or else of main memory.
            None on Windows without a GPU.
    """

    step: int
    loss: float
    losses: dict[str, float]
    lr: float
    alpha: dict[str | int, float]
    prior: dict[str | int, float]
    multipliers: dict[str, float]
    dots: dict[str, float] | None
    sqnorms: dict[str, float] | None
    skipped: int
    tokens: dict[str, int]
    examples: dict[str, int | None]
    tokens_per_second: float
    seconds: float
    cpu_seconds: float
    engine: str
    peak_memory: int | None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; empty if there is no such file. A last line cut short by a kill is left out.

    Raises:
        UserError: another line is damaged: it is no JSON, or a value in it has a wrong type.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_file(path).split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if not _is_record(record):
                raise ValueError("not a line that training writes")
            records.append(record)
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: damaged; remove the line") from None
    return records


def best_validation(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The line of metrics.jsonl of the validation whose model is best.pt. None: there is none yet."""
    return next((record for record in reversed(records) if record.get("best")), None)


def lowest_validation_nll(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{task: its lowest validation NLL in these lines of metrics.jsonl}, in nats per token."""
    lowest: dict[str, float] = {}
    for record in records:
        for task, nll in record.get("valid", {}).get("nll", {}).items():
            if nll is not None:
                lowest[task] = min(nll, lowest.get(task, nll))
    return lowest


def _is_record(value: Any) -> bool:
    """Whether a value from a line has the types that training writes, as far as other modules read them."""
    if not isinstance(value, dict):
        return False
    step, valid = value.get("step"), value.get("valid", {})
    if type(step) is not int or not 0 <= step < 2**53 or not isinstance(valid, dict):
        return False
    names = ("losses", "alpha", "prior", "tokens", "examples")
    scores = value.get("scores", {})
    if not isinstance(scores, dict):
        return False
    tables = (*(value.get(name, {}) for name in names), valid.get("nll", {}), *scores.values())
    means = (valid.get(name) for name in ("all", "bleu", "chrf"))
    single = (value.get("seconds", 0.0), value.get("cpu_seconds"), value.get("peak_memory"), *means)
    return (
        all(isinstance(table, dict) and all(map(_is_number_or_none, table.values())) for table in tables)
        and all(map(_is_number_or_none, single))
        and ("tokens" not in value or None not in (value.get("seconds"), *value["tokens"].values()))
        and None not in value.get("prior", {}).values()
        and isinstance(value.get("diverged", ""), str)
        and ("probabilities" not in value or _is_change(value))
    )


def _is_change(value: dict[str, Any]) -> bool:
    """Whether it is a line with sampling probabilities and the update that they count from."""
    table, first = value["probabilities"], value.get("from_update")
    numbers = isinstance(table, dict) and table and all(x is not None and _is_number_or_none(x) for x in table.values())
    return bool(numbers) and type(first) is int and 0 < first < 2**53


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300)


def divergence(records: Sequence[Mapping[str, Any]]) -> str:
    """How the training of a run ended if it diverged, such as "training diverged at update 9 (..)"; "" if it did not.

    Older versions wrote no such line, but the mean of the last validation is null there.
    """
    for record in reversed(records):
        if "diverged" in record:
            return str(record["diverged"])
        if record.get("valid", {}).get("nll"):
            diverged = record["valid"].get("all") is None
            return (
                f"training diverged at update {record['step']} (the validation NLL is not finite)" if diverged else ""
            )
    return ""


class Metrics:
    """Writes metrics.jsonl: a line every train.log_every updates and one per validation. nan and inf become null.

    If the training diverges, the last line says so.

    Args:
        path: the file. Lines of later steps than `keep_until` are removed: the resumed run will write them again.
        tensorboard: the folder for TensorBoard's files.
        keep_until: the step of the checkpoint that training resumes from, or 0.
        boards: what else gets the numbers.
    """

    def __init__(self, path: Path, tensorboard: Path, keep_until: int, boards: Sequence[Board] = ()) -> None:
        self.path = path
        kept = [record for record in read_metrics(path) if record["step"] <= keep_until]
        atomic_write(path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self.boards = [*boards]
        with contextlib.suppress(ImportError):
            self.boards.append(TensorBoard(tensorboard, keep_until + 1))

    def write(self, record: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
            UserError: the disk is full, or the file cannot be written.
        """
        line = json.dumps(finite_or_none(record), allow_nan=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise unwritable(self.path, error) from error
        numbers = {name: value for name, value in _numbers(record) if name != "step"}
        self._tell_boards(lambda board: board.write(record["step"], numbers))

    def sync(self) -> None:
        """Flushes the lines to the disk, so that they survive a power cut."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self._tell_boards(lambda board: board.flush())

    def close(self, *, failed: bool = False) -> None:
        """Ends the boards. Nothing may be written after it.

        Args:
            failed: the training did not come to its end.
        """
        self._tell_boards(lambda board: board.close(failed=failed))

    def _tell_boards(self, call: Callable[[Board], None]) -> None:
        """Calls all boards. One that fails gets no more: metrics.jsonl has the numbers, so the training goes on."""
        for board in [*self.boards]:
            try:
                call(board)
            except Exception as error:  # whatever such a program may raise
                self.boards.remove(board)
                reason = (str(error) or type(error).__name__).partition("\n")[0]
                tell(f"cats: {type(board).__name__} failed ({reason}) and gets no more numbers; {self.path} has them")


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in nested dicts, with names such as "alpha/az"."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
