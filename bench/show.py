"""`python -m bench.show FILE...`: prints the tables of result files again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .common.command import Parser, refuse
from .common.results import Provenance, from_json
from .engines import tables as engines
from .engines.records import EngineResults
from .operators import tables as operators
from .operators.records import HostResults, OperatorResults, StepResults
from .scaling import tables as scaling
from .scaling.records import ScalingResults
from .tasks import tables as tasks
from .tasks.records import WeightingResults
from .trainer import tables as trainer
from .trainer.records import EndToEndResults, PreparingResults

# A key that only these results have, their dataclass, and the function that prints them.
RESULTS: tuple[tuple[str, Any, Callable[[Provenance, Any], str]], ...] = (
    ("cases", OperatorResults, operators.markdown),
    ("step", StepResults, operators.step_markdown),
    ("host_calls", HostResults, operators.host_markdown),
    ("contests", EndToEndResults, trainer.end_to_end_markdown),
    ("outer_steps", EngineResults, engines.markdown),
    ("trainings", WeightingResults, tasks.markdown),
    ("all_reduces", ScalingResults, scaling.markdown),
    ("sizes", PreparingResults, trainer.preparing_markdown),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 2 if a file does not hold results."""
    parser = Parser(prog="python -m bench.show", description="Prints the tables of result files as Markdown.")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a JSON file of bench/results")
    for path in parser.parse_args(arguments).files:
        try:
            print(markdown(path), end="")
        except (OSError, ValueError) as error:
            return refuse(f"{path}: {error}")
    return 0


def markdown(path: Path) -> str:
    """The tables of a result file, as the command that wrote it printed them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON file, or not of these benchmarks.
    """
    value = json.loads(path.read_text())
    for key, kind, tables in RESULTS:
        if isinstance(value, dict) and key in value:
            return tables(from_json(Provenance, value), from_json(kind, value))
    raise ValueError("not a result file of these benchmarks")


if __name__ == "__main__":
    sys.exit(main())
