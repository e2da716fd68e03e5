"""Tables of scores: Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TITLES = {"all": "All", "lores": "LoRes", "midres": "MidRes", "hires": "HiRes"}
METRICS = ("bleu", "bleu_13a", "chrf", "chrfpp", "spbleu", "nll", "perplexity", "off_target", "off_target_references")
# Scores beyond the first table's -> their titles and decimals.
MORE = {
    "bleu_13a": ("BLEU 13a", 1),
    "chrfpp": ("chrF++", 1),
    "spbleu": ("spBLEU", 1),
    "perplexity": ("PPL", 2),
    "off_target": ("off-target %", 1),
    "off_target_references": ("references %", 1),
}


def scores_table(scores: Mapping[str, Any]) -> str:
    """The scores as an aligned Markdown table: languages from the smallest to the largest, then the groups."""
    lookup = scores["lookup"]
    rows = [["language", "group", "pairs", "BLEU", "chrF", "NLL", "lookup chrF"]]
    for name, title, pairs, cell in _cells(scores):
        baseline = lookup["languages"].get(name) or lookup["groups"][name]
        rows.append([*_heads(name, title, pairs), *_numbers(cell, baseline)])
    return aligned(rows, left=2)


def more_scores_table(scores: Mapping[str, Any]) -> str:
    """The other scores as a table of the same rows, and zero-shot directions below."""
    rows = [["language", "group", "pairs", *(title for title, _ in MORE.values())]]
    rows += [[*_heads(name, title, pairs), *_more(cell)] for name, title, pairs, cell in _cells(scores)]
    rows += [[name, "zero-shot", "0", *_more(cell)] for name, cell in scores.get("zero_shot", {}).items()]
    return aligned(rows, left=2)


def zero_shot_table(scores: Mapping[str, Any]) -> str:
    """A table of the directions without training text."""
    rows = [["direction", "lines", "BLEU", "chrF", "NLL"]]
    rows += [[n, f"{c['lines']:,}", *_numbers(c, {"chrf": None})[:3]] for n, c in scores.get("zero_shot", {}).items()]
    return aligned(rows, left=1)


def checkpoints_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the same run's scores with several checkpoints, {name: scores}."""
    metrics = (("BLEU", "bleu", 1), ("chrF", "chrf", 1), ("NLL", "nll", 3))
    rows = [["language", "group", "pairs", *(f"{title} {name}" for title, _, _ in metrics for name in scores)]]
    first = next(iter(scores.values()))
    for language, title, pairs, _ in _cells(first):
        cells = [each["languages"].get(language) or each["groups"].get(language, {}) for each in scores.values()]
        values = [_number(cell.get(metric), digits) for _, metric, digits in metrics for cell in cells]
        rows.append([*_heads(language, title, pairs), *values])
    return aligned(rows, left=2)


def strata_table(scores: Mapping[str, Any]) -> str:
    groups = [group for group, cell in scores["groups"].items() if cell["languages"]]
    rows = [["stratum", "lines", *[f"{TITLES[g]} {m}" for g in groups for m in ("chrF", "lookup", "NLL")]]]
    for name, part in scores["strata"].items():
        row = [name, f"{sum(cell['lines'] for cell in part['languages'].values()):,}"]
        for g in groups:
            cell, baseline = part["groups"][g], part["lookup"]["groups"][g]
            row += [_number(cell["chrf"], 1), _number(baseline["chrf"], 1), _number(cell["nll"], 3)]
        rows.append(row)
    return aligned(rows, left=1)


def scores_csv(scores: Mapping[str, Any]) -> str:
    """The scores as CSV, one row per language, group and zero-shot direction; a missing score is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "group", "pairs", "lines", *METRICS, "lookup_chrf"])
    for name, title, pairs, cell in _cells(scores):
        baseline = scores["lookup"]["languages"].get(name) or scores["lookup"]["groups"][name]
        row = [name, title, pairs, cell.get("lines"), *map(cell.get, METRICS), baseline.get("chrf")]
        writer.writerow(["" if value is None else value for value in row])
    for name, cell in scores.get("zero_shot", {}).items():
        row = [name, "zero-shot", 0, cell.get("lines"), *map(cell.get, METRICS), None]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def _cells(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, int, Mapping[str, Any]]]:
    """(name, title of its group, pairs, scores) of the languages, the smallest first, then of the groups (title "")."""
    member = {n: TITLES[g] for g, cell in scores["groups"].items() if g != "all" for n in cell["languages"]}
    for name, cell in sorted(scores["languages"].items(), key=lambda item: (item[1]["pairs"], item[0])):
        yield name, member.get(name, "none"), cell["pairs"], cell
    for group, cell in scores["groups"].items():
        if cell["languages"]:
            yield group, "", sum(scores["languages"][name]["pairs"] for name in cell["languages"]), cell


def _heads(name: str, title: str, pairs: int) -> list[str]:
    return [name if title else f"**{TITLES[name]}**", title, f"{pairs:,}"]


def _more(cell: Mapping[str, Any]) -> list[str]:
    """The scores of MORE; shares in percent."""
    values = [
        (cell.get(name), 100 if name.startswith("off_target") else 1, digits) for name, (_, digits) in MORE.items()
    ]
    return [_number(None if value is None else scale * value, digits) for value, scale, digits in values]


def _numbers(cell: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    return [
        _number(cell["bleu"], 1),
        _number(cell["chrf"], 1),
        _number(cell["nll"], 3),
        _number(baseline["chrf"], 1),
    ]


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table that is one in plain text too; all but the first ``left`` columns are right-aligned."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = [("-" * w if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])])
