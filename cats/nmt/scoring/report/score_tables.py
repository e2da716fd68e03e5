"""The scores of one or several runs as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cats.nmt.scoring.plots.style import method_colour
from cats.nmt.scoring.report.html import Child, Html, element, joined
from cats.nmt.scoring.report.runs import ReportedRun
from cats.nmt.scoring.report.sortable import table
from cats.nmt.scoring.scores import TITLES, Cell
from cats.nmt.scoring.tables import MORE_SCORES, number, spread

# The main measures, with their titles and decimals.
Measures = Mapping[str, tuple[str, int]]
_MAIN = {"bleu": ("BLEU", 1), "chrf": ("chrF", 1), "nll": ("NLL", 3)}


def of_one_run(run: ReportedRun) -> Html:
    """All scores of a run: a row for each language; the averages of the groups at the end."""
    scores, theirs = run.scores, run.scores.nearest_neighbour
    measures = _measures(run)
    group_of = {task: TITLES[group] for group, tasks in scores.members.items() if group != "all" for task in tasks}

    def row(name: str, group: str, pairs: int, ours: Cell, baseline: Cell) -> list[Child]:
        return [name, group, f"{pairs:,}", number(baseline.quality.chrf, 1), *_numbers(ours, measures)]

    tasks = sorted(scores.pairs, key=lambda task: (scores.pairs[task], task))
    rows = [
        row(task, group_of.get(task, "none"), scores.pairs[task], scores.model.tasks[task], theirs.tasks[task])
        for task in tasks
    ]
    totals = []
    for group, names in scores.members.items():
        if names:
            pairs = sum(scores.pairs[task] for task in names)
            totals.append(row(TITLES[group], "", pairs, scores.model.groups[group], theirs.groups[group]))
    titles = [title for title, _ in measures.values()]
    columns = ["language", "group", "pairs", "baseline chrF", *titles]
    parts = [table("Scores of each language", columns, rows, totals=totals, left=2)]
    if scores.zero_shot:
        directions = scores.zero_shot.items()
        text = "Directions without training text, scored on all their lines. They are not part of the averages."
        parts += [
            element("h3", "Zero-shot"),
            element("p", text),
            table(
                "Zero-shot directions",
                ["direction", "lines", *titles],
                [[name, f"{cell.lines:,}", *_numbers(cell, measures)] for name, cell in directions],
            ),
        ]
    if scores.strata:
        parts += [element("h3", "By stratum of the test lines"), _strata(run)]
    return joined(*parts)


def of_runs(runs: Sequence[ReportedRun]) -> Html:
    """The averages of the groups, a row for each run, then each measure by language."""
    groups = [group for group in TITLES if any(run.scores.members.get(group) for run in runs)]
    columns = ["run", *(f"{TITLES[group]} {title}" for title, _ in _MAIN.values() for group in groups), "time"]
    rows: list[list[Child]] = []
    for run in runs:
        cells = [run.scores.model.groups.get(group, Cell()) for group in groups]
        numbers = [number(cell.get(measure), digits) for measure, (_, digits) in _MAIN.items() for cell in cells]
        seconds = run.scores.run.seconds
        rows.append([run_name(run.name, run.method), *numbers, "n/a" if seconds is None else f"{seconds:,.0f} s"])
    parts = [table("Averages of the groups", columns, rows)]
    for measure, (title, digits) in _MAIN.items():
        parts += [element("h3", f"{title} by language"), _by_language(runs, measure, title, digits)]
    return joined(*parts)


def seed_means(runs: Sequence[ReportedRun]) -> Html | None:
    """The means over the seeds of each method, with their standard deviations; None if each method has one seed."""
    by_method: dict[str, list[ReportedRun]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    if all(len(found) == 1 for found in by_method.values()):
        return None
    groups = [group for group in TITLES if any(run.scores.members.get(group) for run in runs)]
    columns = ["method", "seeds", *(f"{TITLES[g]} {title}" for title, _ in _MAIN.values() for g in groups)]
    rows: list[list[Child]] = []
    for method, found in by_method.items():
        numbers = []
        for measure, (_, digits) in _MAIN.items():
            for group in groups:
                values = [run.scores.model.groups.get(group, Cell()).get(measure) for run in found]
                numbers.append(_spread(values, digits))
        rows.append([run_name(method, method), str(len(found)), *numbers])
    return table("Means over the seeds", columns, rows)


def run_name(name: str, method: str) -> Html:
    """A name with a mark in the colour that its method has in the pictures."""
    return joined(element("span", class_="mark", style=f"background: {method_colour(method)}"), name)


def _by_language(runs: Sequence[ReportedRun], measure: str, title: str, digits: int) -> Html:
    """One measure: a row for each run and a column for each language, or the other way round if there are more."""
    pairs = {task: count for run in runs for task, count in run.scores.pairs.items()}
    tasks = sorted(pairs, key=lambda task: (pairs[task], task))

    def text(run: ReportedRun, task: str) -> str:
        cell = run.scores.model.tasks.get(task)
        return "" if cell is None else number(cell.get(measure), digits)

    if len(tasks) > max(12, len(runs)):
        columns = ["language", "pairs", *(run.name for run in runs)]
        rows = [[task, f"{pairs[task]:,}", *(text(run, task) for run in runs)] for task in tasks]
        return table(f"{title} by language", columns, rows)
    return table(
        f"{title} by language",
        ["run", *tasks],
        [[run_name(r.name, r.method), *(text(r, t) for t in tasks)] for r in runs],
    )


def _strata(run: ReportedRun) -> Html:
    groups = [group for group, tasks in run.scores.members.items() if tasks]
    columns = ["stratum", "lines", *(f"{TITLES[group]} {what}" for group in groups for what in ("chrF", "NLL"))]
    rows: list[list[Child]] = []
    for name, stratum in run.scores.strata.items():
        cells = [stratum.model.groups[group] for group in groups]
        lines = sum(cell.lines for cell in stratum.model.tasks.values())
        numbers = [text for cell in cells for text in (number(cell.quality.chrf, 1), number(cell.get("nll"), 3))]
        rows.append([name, f"{lines:,}", *numbers])
    return table("Scores by stratum", columns, rows)


def _measures(run: ReportedRun) -> Measures:
    """The measures that the run has. BLEU with 13a is left out if it is BLEU itself."""
    cells = [*run.scores.model.tasks.values(), *run.scores.zero_shot.values()]
    found = {m: what for m, what in (_MAIN | MORE_SCORES).items() if any(cell.get(m) is not None for cell in cells)}
    if all(cell.get("bleu") == cell.get("bleu_13a") for cell in cells):
        found.pop("bleu_13a", None)
    return found


def _numbers(cell: Cell, measures: Measures) -> list[str]:
    """The measures of a cell; shares as percentages."""
    percent = {name: 100 if name.startswith("off_target") else 1 for name in measures}
    values = {name: cell.get(name) for name in measures}
    return [
        number(None if (value := values[name]) is None else percent[name] * value, digits)
        for name, (_, digits) in measures.items()
    ]


def _spread(values: Sequence[float | None], digits: int) -> str:
    """Mean and standard deviation over seeds, if all of them have a value."""
    known = [value for value in values if value is not None]
    return spread(known, digits) if known and len(known) == len(values) else "n/a"
