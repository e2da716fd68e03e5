"""All tables of scores, as Markdown and CSV: of a run, of a comparison, of a significance test."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cats.nmt.scoring import compare
from cats.nmt.scoring.compare import Comparison, MethodResult, Regret, SetResult
from cats.nmt.scoring.scores import METRICS, TITLES, Cell, Scores
from cats.nmt.scoring.significance import Row as TestRow

# The metrics of the second table, with their titles and decimals.
_MORE = {
    "bleu_13a": ("BLEU 13a", 1),
    "chrfpp": ("chrF++", 1),
    "spbleu": ("spBLEU", 1),
    "perplexity": ("PPL", 2),
    "off_target": ("off-target %", 1),
    "off_target_references": ("references %", 1),
}
_CHEAPEST = "T=1"  # the method that time and memory of the others are compared with: plain training
_MOST_COLUMNS = 12  # a comparison of more languages has a row for each, in place of a column


@dataclass(frozen=True)
class _Row:
    """A task or a group in a table.

    Attributes:
        name: name of the task or of the group.
        label: the name as it is printed.
        group: title of the group that a task is in; "none" for a task in no group, "" for a group.
        pairs: training pairs.
        lines: lines that a task is scored on; None for a group.
        cell: the model's scores.
        baseline: the scores of the nearest-neighbour baseline.
    """

    name: str
    label: str
    group: str
    pairs: int
    lines: int | None
    cell: Cell
    baseline: Cell

    @property
    def start(self) -> list[str]:
        """The first three columns."""
        return [self.label, self.group, f"{self.pairs:,}"]


def scores_table(scores: Scores) -> str:
    """The main scores: tasks in the order of their training pairs, then groups."""
    rows = [["language", "group", "pairs", "BLEU", "chrF", "NLL", "nearest neighbour chrF"]]
    for row in _rows(scores):
        rows.append([*row.start, *_main_scores(row.cell), _number(row.baseline.quality.chrf, 1)])
    return aligned(rows, left=2)


def more_scores_table(scores: Scores) -> str:
    """The other scores of the same tasks and groups, then those of zero-shot directions."""
    rows = [["language", "group", "pairs", *(title for title, _ in _MORE.values())]]
    rows += [[*row.start, *_more_scores(row.cell)] for row in _rows(scores)]
    rows += [[name, "zero-shot", "0", *_more_scores(cell)] for name, cell in scores.zero_shot.items()]
    return aligned(rows, left=2)


def zero_shot_table(scores: Scores) -> str:
    """The main scores of directions without training text."""
    rows = [["direction", "lines", "BLEU", "chrF", "NLL"]]
    rows += [[name, f"{cell.lines:,}", *_main_scores(cell)] for name, cell in scores.zero_shot.items()]
    return aligned(rows, left=1)


def checkpoints_table(scores: Mapping[str, Scores]) -> str:
    """The scores of several checkpoints of one run side by side.

    Args:
        scores: scores by name of the checkpoint.
    """
    metrics = (("BLEU", "bleu", 1), ("chrF", "chrf", 1), ("NLL", "nll", 3))
    rows = [["language", "group", "pairs", *(f"{title} {name}" for title, _, _ in metrics for name in scores)]]
    cells = [{row.label: row.cell for row in _rows(each)} for each in scores.values()]
    for row in _rows(next(iter(scores.values()))):
        here = [by_label.get(row.label, Cell()) for by_label in cells]
        rows.append([*row.start, *(_number(c.get(metric), digits) for _, metric, digits in metrics for c in here)])
    return aligned(rows, left=2)


def strata_table(scores: Scores) -> str:
    """The scores of the groups on each stratum of the test lines."""
    groups = [group for group, members in scores.members.items() if members]
    columns = ("chrF", "nearest neighbour", "NLL")
    rows = [["stratum", "lines", *[f"{TITLES[group]} {column}" for group in groups for column in columns]]]
    for name, stratum in scores.strata.items():
        row = [name, f"{sum(cell.lines for cell in stratum.model.tasks.values()):,}"]
        for group in groups:
            cell, baseline = stratum.model.groups[group], stratum.nearest_neighbour.groups[group]
            row += [_number(cell.quality.chrf, 1), _number(baseline.quality.chrf, 1), _number(cell.get("nll"), 3)]
        rows.append(row)
    return aligned(rows, left=1)


def scores_csv(scores: Scores) -> str:
    """The content of scores.csv: a row for each task, group and zero-shot direction. A missing score is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "group", "pairs", "lines", *METRICS, "lookup_chrf"])
    for row in _rows(scores):
        numbers = [row.lines, *map(row.cell.get, METRICS), row.baseline.quality.chrf]
        writer.writerow([row.name, row.group, row.pairs, *_or_empty(numbers)])
    for name, cell in scores.zero_shot.items():
        writer.writerow([name, "zero-shot", 0, *_or_empty([cell.lines, *map(cell.get, METRICS), None])])
    return text.getvalue()


def significance_table(rows: Sequence[TestRow]) -> str:
    """The rows of `cats.nmt.scoring.significance.compare`."""
    cells = [["test", "metric", "A", "B", "B - A", "95 % interval", "p bootstrap", "p randomisation"]]
    for row in rows:
        result = row.result
        low, high = result.interval
        numbers = [f"{result.first:.2f}", f"{result.second:.2f}", f"{result.difference:+.2f}"]
        p_values = [f"{result.p_bootstrap:.4f}", f"{result.p_randomisation:.4f}"]
        cells.append([row.name, row.metric, *numbers, f"{low:+.2f} to {high:+.2f}", *p_values])
    return aligned(cells, left=2)


def comparison_tables(comparison: Comparison) -> str:
    """The content of compare.md: for each set the groups' averages and the chrF of each task, then the regrets."""
    lines = [line for name, result in comparison.sets.items() for line in _set_tables(name, result)]
    if comparison.regret:
        lines += _regret_table(comparison.regret)
    return "\n".join(lines)


def comparison_csv(comparison: Comparison) -> str:
    """The content of compare.csv: a row for each set, method, seed and task or group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "method", "seed", "name", *compare.METRICS])
    for name, result in comparison.sets.items():
        for method, scores in result.methods.items():
            for cell, values in (*scores.languages.items(), *scores.groups.items()):
                for seed, *numbers in zip(scores.seeds, values.nll, values.chrf, values.bleu, strict=True):
                    writer.writerow([name, method, seed, TITLES.get(cell, cell), *numbers])
    return text.getvalue()


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table that is also readable as plain text.

    Args:
        rows: the cells; the first row is the heading.
        left: the number of columns to align left. The others are aligned right.
    """
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return _line(cells)

    rule = [("-" * w if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), _line(rule), *map(line, rows[1:])])


def _rows(scores: Scores) -> Iterator[_Row]:
    """The tasks in the order of their training pairs, then the groups that have tasks."""
    title = {name: TITLES[group] for group, names in scores.members.items() if group != "all" for name in names}
    theirs = scores.nearest_neighbour
    for name, cell in sorted(scores.model.tasks.items(), key=lambda item: (scores.pairs[item[0]], item[0])):
        group = title.get(name, "none")
        yield _Row(name, name, group, scores.pairs[name], cell.lines, cell, theirs.tasks[name])
    for group, average in scores.model.groups.items():
        if members := scores.members[group]:
            pairs = sum(scores.pairs[name] for name in members)
            yield _Row(group, f"**{TITLES[group]}**", "", pairs, None, average, theirs.groups[group])


def _set_tables(name: str, result: SetResult) -> list[str]:
    """The lines of the tables of one set."""
    pairs = ", ".join(f"{task} {count:,}" for task, count in result.pairs.items())
    seeds = len(next(iter(result.methods.values())).seeds)
    groups = ["all", *result.groups]
    tasks = [task for names in result.groups.values() for task in names]
    digits = {"nll": 3, "chrf": 1, "bleu": 1}
    columns = [f"{TITLES[group]} {metric}" for metric in ("NLL", "chrF", "BLEU") for group in groups]
    lines = [f"## {name}", "", f"Training pairs: {pairs}. Mean ± standard deviation over {seeds} seed(s).", ""]
    cost = _relative_cost(result.methods)
    lines += _plain(["method", *columns, *(["time", "memory"] if cost else [])])
    for method, scores in result.methods.items():
        averages = [_spread(getattr(scores.groups[g], m), digits[m]) for m in compare.METRICS for g in groups]
        lines.append(_line([method, *averages, *(cost[method] if cost else [])]))
    baseline = [
        "" if metric == "nll" else _number(result.nearest_neighbour[group].get(metric), 1)
        for metric in compare.METRICS
        for group in groups
    ]
    lines += [_line(["nearest neighbour", *baseline, *([""] * 2 if cost else [])]), ""]
    if cost:
        first = result.methods[_CHEAPEST]
        lines += [
            f"Time of training and peak memory of the process relative to {_CHEAPEST}, which took "
            f"{_mean(first.seconds):,.0f} s and {_mean(first.peak_memory) / 2**20:,.0f} MiB.",
            "",
        ]
    untrained = [
        f"{method} (seed {', '.join(map(str, scores.untrained))})"
        for method, scores in result.methods.items()
        if scores.untrained
    ]
    if untrained:
        lines += [
            f"Not trained: {'; '.join(untrained)}. There, all translations are empty, or the chrF of every group is",
            "below that of the nearest-neighbour baseline.",
            "",
        ]
    lines += ["chrF by language:", ""]
    rows = [["method", *tasks]]
    for method, scores in result.methods.items():
        rows.append([method, *(_spread(scores.languages[task].chrf, 1) for task in tasks)])
    if len(tasks) > _MOST_COLUMNS:
        rows = [list(row) for row in zip(*rows, strict=True)]
        rows[0][0] = "language"
    lines += [*_plain(rows[0]), *map(_line, rows[1:])]
    return [*lines, ""]


def _relative_cost(methods: Mapping[str, MethodResult]) -> dict[str, list[str]]:
    """{method: its time and memory as multiples of those of T=1}; empty if those of T=1 are not known."""

    def ratio(values: Sequence[float | None], unit: Sequence[float | None]) -> str:
        return _number(None if None in values else _mean(values) / _mean(unit), 2)

    first = methods.get(_CHEAPEST)
    if first is None or None in first.seconds or None in first.peak_memory:
        return {}
    return {
        name: [ratio(each.seconds, first.seconds), ratio(each.peak_memory, first.peak_memory)]
        for name, each in methods.items()
    }


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _regret_table(regrets: Mapping[str, Regret]) -> list[str]:
    """The lines of the table of regrets."""
    lines = [
        "## Worst regret",
        "",
        "The chrF that a method loses to the best temperature, in the worst set and group. The 95 % interval is by",
        "bootstrap over seeds and clusters of test lines.",
        "",
        "| method | worst regret | interval | where |",
        "| --- | ---: | :---: | --- |",
    ]
    for method, regret in regrets.items():
        low, high = regret.interval
        lines.append(_line([method, f"{regret.worst:.1f}", f"{low:.1f} to {high:.1f}", regret.where]))
    return [*lines, ""]


def _plain(heading: Sequence[str]) -> list[str]:
    """The heading of a Markdown table with one column of text and the rest numbers."""
    return [_line(heading), "| --- |" + " ---: |" * (len(heading) - 1)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _main_scores(cell: Cell) -> list[str]:
    return [_number(cell.quality.bleu, 1), _number(cell.quality.chrf, 1), _number(cell.get("nll"), 3)]


def _more_scores(cell: Cell) -> list[str]:
    """The scores of `_MORE`; shares as percentages."""
    texts = []
    for metric, (_, digits) in _MORE.items():
        value = cell.get(metric)
        percent = metric.startswith("off_target")
        texts.append(_number(100 * value if percent and value is not None else value, digits))
    return texts


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _or_empty(values: Sequence[float | None]) -> list[float | str]:
    return ["" if value is None else value for value in values]
