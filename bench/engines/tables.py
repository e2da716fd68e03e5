"""The printed tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.common.results import Provenance
from bench.common.tables import table
from bench.common.targets import targets_table

from .records import EngineResults, Measured, Model, OuterStep

Cell = Callable[[OuterStep, Measured], str]


def markdown(source: Provenance, results: EngineResults) -> str:
    """All tables of `python -m bench.engines`."""
    lines = [source.heading(results.device)]
    for model in results.models:
        steps = [step for step in results.outer_steps if step.model == model.name]
        lines += ["", f"{about(model)}. A step that moves α, divided by a plain step:", ""]
        lines += by_contender(steps, [("time", time), ("memory", memory)])
    trainings = training_rows(results.outer_steps)
    if trainings:
        head = ("model", "K", "m", "engine", "time", "20–80 %", "peak memory")
        lines += ["", "Training with the engine auto, α moves in one of m steps, divided by plain training:", ""]
        lines += table(head, trainings)
    lines += ["", "The norm of the error of v, as a share of the norm of v:", ""]
    for model in results.models:
        steps = [step for step in results.outer_steps if step.model == model.name]
        lines += [*by_contender(steps, [(model.name, lambda _, c: f"{c.error:.0e}")]), ""]
    lines += targets_table(results.targets, of="contender")
    if missing := missing_lines(results.outer_steps):
        lines += ["", "Not measured:", "", *missing]
    return "\n".join(lines) + "\n"


def about(model: Model) -> str:
    """The facts about a model in one line."""
    return (
        f"{model.name}: {model.parameters / 1e6:.1f} million parameters, d = {model.width}, V = {model.vocab_size:,}, "
        f"batches of {model.sentences} sentences with {model.tokens:,} target tokens, {model.precision}"
    )


def by_contender(steps: Sequence[OuterStep], columns: Sequence[tuple[str, Cell]]) -> list[str]:
    """A table with a row per contender, and for each kind of column one per K. Empty: not measured."""
    fullest = sorted(steps, key=lambda step: -len(step.contenders))  # the order of rows is that of the contenders
    names = list(dict.fromkeys(c.name for step in fullest for c in step.contenders))
    head = ["", *(f"{text}, K={step.tasks}" for text, _ in columns for step in steps)]
    rows = []
    for name in names:
        found = [(step, step.find(name)) for step in steps]
        rows.append([name, *(cell(s, c) if c else "" for _, cell in columns for s, c in found)])
    return table(head, rows)


def time(step: OuterStep, contender: Measured) -> str:
    return ratio(contender.ratio.median)


def memory(step: OuterStep, contender: Measured) -> str:
    found = step.memory(contender)
    return "" if found is None else ratio(found)


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def training_rows(steps: Sequence[OuterStep]) -> list[tuple[object, ...]]:
    """Whole trainings: model, K, m, engine, time, its percentiles, memory."""
    rows = []
    for step in steps:
        for t in step.training:
            peak = step.memory(t)
            spread = f"{t.ratio.low:.2f}–{t.ratio.high:.2f}"
            shown = "" if peak is None else ratio(peak)
            rows.append((step.model, step.tasks, t.inner_steps, t.engine, ratio(t.ratio.median), spread, shown))
    return rows


def missing_lines(steps: Sequence[OuterStep]) -> list[str]:
    """A line for each contender and reason."""
    where: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        for r in step.refused:
            where.setdefault((r.name, r.reason), []).append(f"{step.model} K={step.tasks}")
    return [f"- {name} ({', '.join(cases)}): {reason}" for (name, reason), cases in where.items()]
