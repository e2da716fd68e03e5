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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cats.nmt.files import atomic_write, finite_or_none

from .machine import ROOT, Machine, commit, machine, versions

FOLDER = ROOT / "bench" / "results"  # the committed results

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


def write(path: Path, source: Provenance, results: Any) -> None:
    """Writes provenance and results (a dataclass) as one JSON object. The file is written completely or not at all.

    JSON has no NaN and no infinity. They are written as null.
    """
    write_json(path, dataclasses.asdict(source) | dataclasses.asdict(results))
    print(f"wrote {path}", file=sys.stderr)


def write_json(path: Path, value: Any) -> None:
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
