"""The tables of scores of a run and of a significance test, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cats.nmt.scoring.scores import METRICS, TITLES, Cell, Scores
from cats.nmt.scoring.significance import Row as TestRow

# The metrics of the second table, with their titles and decimals.
MORE_SCORES = {
    "bleu_13a": ("BLEU 13a", 1),
    "chrfpp": ("chrF++", 1),
    "spbleu": ("spBLEU", 1),
    "perplexity": ("PPL", 2),
    "off_target": ("off-target %", 1),
    "off_target_references": ("references %", 1),
}


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
        rows.append([*row.start, *_main_scores(row.cell), number(row.baseline.quality.chrf, 1)])
    return aligned(rows, left=2)


def more_scores_table(scores: Scores) -> str:
    """The other scores of the same tasks and groups, then those of zero-shot directions."""
    rows = [["language", "group", "pairs", *(title for title, _ in MORE_SCORES.values())]]
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
        rows.append([*row.start, *(number(c.get(metric), digits) for _, metric, digits in metrics for c in here)])
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
            row += [number(cell.quality.chrf, 1), number(baseline.quality.chrf, 1), number(cell.get("nll"), 3)]
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


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table that is also readable as plain text.

    Args:
        rows: the cells; the first row is the heading.
        left: the number of columns to align left. The others are aligned right.
    """
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return line_of(cells)

    rule = [("-" * w if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line_of(rule), *map(line, rows[1:])])


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


def line_of(cells: Sequence[str]) -> str:
    """A line of a Markdown table. A cell may have a "|"."""
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _main_scores(cell: Cell) -> list[str]:
    return [number(cell.quality.bleu, 1), number(cell.quality.chrf, 1), number(cell.get("nll"), 3)]


def _more_scores(cell: Cell) -> list[str]:
    """The scores of `MORE_SCORES`; shares as percentages."""
    texts = []
    for metric, (_, digits) in MORE_SCORES.items():
        value = cell.get(metric)
        percent = metric.startswith("off_target")
        texts.append(number(100 * value if percent and value is not None else value, digits))
    return texts


def number(value: float | None, digits: int) -> str:
    """A number with this many decimals; n/a if there is none."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def spread(values: Sequence[float], digits: int) -> str:
    """The mean over seeds with this many decimals, and with several ± the standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _or_empty(values: Sequence[float | None]) -> list[float | str]:
    return ["" if value is None else value for value in values]
