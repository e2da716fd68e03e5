"""Result files: JSON with the results of one command, and with the facts about the machine and the software."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cats.nmt.files import atomic_write, finite_or_none

from .machine import ROOT, Machine, commit, machine, versions

FOLDER = ROOT / "bench" / "results"  # the committed results
SUFFIXES = (".json", ".md")

T = TypeVar("T")


@dataclass(frozen=True)
class Provenance:
    """Where results come from. `modified`: source files differed from the commit."""

    command: str
    date: str
    commit: str | None
    modified: bool | None
    machine: Machine
    versions: dict[str, str | None]

    def heading(self, device: str) -> str:
        """One line for the top of printed tables. device: "cpu" or "cuda"."""
        commit = (self.commit or "unknown")[:10] + (" with changes" if self.modified else "")
        about = f"{self.machine.device(device)}; torch {self.versions['torch']}; commit {commit}"
        return f"{about}; `{self.command}`, {self.date}."

    def file_stem(self, device: str, kind: str = "") -> str:
        """The name of a result file without its suffix: <machine>-<date>, then the kind of run if one is given."""
        m = self.machine
        name = m.device("cuda") if device == "cuda" else f"{m.cpu} {m.cores} cores"
        slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b", "", name).lower()).strip("-")
        return "-".join(filter(None, (slug, self.date, kind)))


def provenance(module: str, arguments: Sequence[str] | None) -> Provenance:
    """The facts about a command that starts now. module: as in `python -m`; arguments: None for those of sys.argv."""
    words = sys.argv[1:] if arguments is None else arguments
    head, modified = commit()
    return Provenance(
        command=shlex.join(["python", "-m", module, *words]),
        date=datetime.date.today().isoformat(),
        commit=head,
        modified=modified,
        machine=machine(),
        versions=versions(),
    )


class ResultFiles:
    """The files of a run: its results as JSON, and the Markdown tables beside it.

    They are written again after every case, so that a run that is stopped loses no more than the case that it was at.
    Until the end their names have "-unfinished", and results of an earlier run of the same day are kept.

    Args:
        folder: where to write. None: nowhere.
        stem: the names of the files without their suffixes.
        markdown: makes the tables.
    """

    def __init__(
        self, folder: Path | None, stem: str, source: Provenance, markdown: Callable[[Provenance, Any], str]
    ) -> None:
        self.source, self.markdown = source, markdown
        self.final = None if folder is None else folder / stem
        self.unfinished = None if folder is None else folder / f"{stem}-unfinished"

    def update(self, results: Any) -> None:
        """Writes the results so far (a dataclass)."""
        if self.unfinished is not None:
            note = "Unfinished: the run was stopped, or still measures.\n\n"
            self._write(self.unfinished, results, note + self.markdown(self.source, results))

    def finish(self, results: Any) -> None:
        """Prints the tables, and writes all results."""
        tables = self.markdown(self.source, results)
        print(tables, end="")
        if self.final is not None and self.unfinished is not None:
            self._write(self.final, results, tables)
            for suffix in SUFFIXES:
                _with(self.unfinished, suffix).unlink(missing_ok=True)
            print(f"wrote {_with(self.final, '.json')}", file=sys.stderr)

    def _write(self, stem: Path, results: Any, tables: str) -> None:
        write_json(_with(stem, ".json"), dataclasses.asdict(self.source) | dataclasses.asdict(results))
        atomic_write(_with(stem, ".md"), tables)


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # a stem may have dots


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, completely or not at all. It has no NaN and no infinity: they are written as null."""
    atomic_write(path, json.dumps(finite_or_none(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def from_json(kind: type[T], value: Any) -> T:
    """Builds a dataclass from what `json.load` returned for it. Keys that it does not have are ignored."""
    return typing.cast(T, _decoded(kind, value))


def _decoded(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        return kind(**{key: _decoded(kinds[key], v) for key, v in value.items() if key in kinds})  # type: ignore[operator]
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        classes = [part for part in parts if dataclasses.is_dataclass(part)]
        fitting = (c for c in classes if value.keys() <= {f.name for f in dataclasses.fields(c)})
        return _decoded(next(fitting), value) if classes else value
    if origin is list:
        return [_decoded(parts[0], v) for v in value]
    if origin is dict:
        return {parts[0](key): _decoded(parts[1], v) for key, v in value.items()}
    return value
