"""metrics.jsonl, and the same numbers for TensorBoard where that is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write, finite


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; the last one may be cut short by a kill and is then left out."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("not what train writes")
            records.append(record)
        except ValueError:
            raise UserError(f"{path}, line {number}: damaged; remove the line") from None
    return records


class Metrics:
    """metrics.jsonl: one line per train.log_every updates and one per validation; a number that is not finite is null.

    TensorBoard's files stand beside it in tensorboard/.
    """

    def __init__(self, run: Path, keep_until: int) -> None:
        """Lines of steps behind the checkpoint that is resumed from are dropped: they will be written again."""
        self.path = run / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["step"] <= keep_until]
        atomic_write(self.path, "".join(f"{json.dumps(record)}\n" for record in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=keep_until + 1)

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")
        if self.board is not None:
            for name, value in _numbers(record):
                if name != "step":
                    self.board.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """What was written survives a power cut."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        if self.board is not None:
            self.board.flush()


def _numbers(record: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in nested dicts, by names such as "alpha/az"."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{above}{name}/")
        elif isinstance(value, int | float):
            yield f"{above}{name}", value
