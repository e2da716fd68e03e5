"""Made-up runs: what training and scoring leave in a run directory, as far as pictures read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, to_toml
from cats.nmt.scoring.plots.style import HIDDEN
from tests.nmt.scoring.samples import cell, content

LOW, HIGH = ["az", "be"], ["ru"]
TASKS = [*LOW, *HIGH]
STEPS = range(10, 41, 10)  # a line of losses each, and a validation at every second one


def made_run(
    path: Path,
    *settings: str,
    seed: int = 1,
    level: float = 1.0,
    steps: Sequence[int] = STEPS,
    chrf: float | None = None,
    scores: bool = False,
) -> Path:
    """A run with these settings.

    Losses: `level` + 10/step, and 1 more for LoRes; validation NLL twice that. Each line of losses counts 100 target
    tokens and 10 sentence pairs per task. az has α = 1 + step/100, the others 1.

    Args:
        chrf: test chrF of every task; BLEU is half of it. None: not evaluated.
        scores: validations have BLEU (step) and chrF (twice that).
    """
    path.mkdir(parents=True)
    config = apply_overrides(Config(), ["method.name=cats", *settings, f"train.seed={seed}"])
    (path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    for step in steps:
        losses = {task: level + 10 / step + (task in LOW) for task in TASKS}
        lines.append(
            {
                "step": step,
                "losses": losses,
                "alpha": {"az": 1 + step / 100, "be": 1.0, "ru": 1.0},
                "tokens": dict.fromkeys(TASKS, 100),
                "examples": dict.fromkeys(TASKS, 10),
                "seconds": 1.0,
            }
        )
        if step % 20 == 0:
            nll = {task: 2 * value for task, value in losses.items()}
            line: dict[str, Any] = {"step": step, "valid": {"nll": nll, "all": 1.0}, "best": step == 20}
            if scores:
                line["scores"] = {"bleu": dict.fromkeys(TASKS, step), "chrf": dict.fromkeys(TASKS, 2 * step)}
            lines.append(line)
    write_metrics(path, lines)
    if chrf is not None:
        cells = {task: cell(chrf, pairs=200 if task in HIGH else 20) for task in TASKS}
        groups = {name: cell(chrf, languages=names) for name, names in GROUPS.items()}
        found = content(languages=cells, groups=groups, lookup={"languages": {}, "groups": {}})
        (path / "scores.json").write_text(json.dumps(found), encoding="utf-8")
    return path


GROUPS = {"all": TASKS, "lores": LOW, "hires": HIGH}


def write_metrics(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def lines_of(axis: Axes) -> dict[str, list[list[float]]]:
    """{label: points} of the lines with a name that is shown."""
    return {
        str(line.get_label()): [[round(x, 6), round(y, 6)] for x, y in line.get_xydata()]
        for line in axis.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def thin_lines(axis: Axes) -> int:
    """How many lines of single seeds there are."""
    return sum(str(line.get_label()).startswith(HIDDEN) for line in axis.get_lines())


def names_at_the_right(axis: Axes) -> list[str]:
    return sorted(text.get_text() for text in axis.texts)
