"""The tables of a comparison: compare.md, and the same numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cats.nmt.scoring.compare.results import (
    GROUP_TITLES,
    METRICS,
    SIGNIFICANT,
    Comparison,
    Difference,
    MethodResult,
    Regret,
    SetResult,
)
from cats.nmt.scoring.scores import Cell
from cats.nmt.scoring.tables import aligned, line_of, number, spread

_PLAIN = "T=1"  # the method that time and memory of the others are compared with, if it is there: plain training
_MOST_COLUMNS = 12  # a comparison of more languages has a row for each, in place of a column


def comparison_tables(comparison: Comparison) -> str:
    """The content of compare.md: the tables of each set, then the regrets."""
    lines = [line for name, result in comparison.sets.items() for line in _set_tables(name, result)]
    if comparison.regret_of_all:
        lines += _regret_table(comparison)
    return "\n".join(lines)


def comparison_csv(comparison: Comparison) -> str:
    """The content of compare.csv: a row for each set, method, seed and task or group; not_trained: of that seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "method", "seed", "name", *METRICS, "not_trained"])
    for name, result in comparison.sets.items():
        for method, scores in result.methods.items():
            for cell, values in (*scores.languages.items(), *scores.groups.items()):
                for seed, *numbers in zip(scores.seeds, values.nll, values.chrf, values.bleu, strict=True):
                    verdict = str(seed in scores.untrained).lower()
                    writer.writerow([name, method, seed, GROUP_TITLES.get(cell, cell), *numbers, verdict])
    return text.getvalue()


def summary_csv(comparison: Comparison) -> str:
    """The content of compare-summary.csv: a row for each set, method, and group or task, with all that the tables say.

    The columns from validation to regret_all are about groups only, as in the tables. validation is empty where it is
    of other lines than that of most methods.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("set", "method", "group", "seeds", "planned", "nll", "chrf", "chrf_low", "chrf_high", "bleu"),
            *("validation", "baseline", "difference", "difference_low", "difference_high", "p", "p_holm"),
            *("regret_temperatures", "regret_all", "time", "memory", "tokens", "examples"),
            *("bleu_difference", "bleu_difference_low", "bleu_difference_high", "bleu_p", "bleu_p_holm", "not_trained"),
        ]
    )
    for name, result in comparison.sets.items():
        cost = _relative_cost(result.methods)
        for method, found in result.methods.items():
            comparable = method not in result.other_validation
            for group, scores in (found.groups | found.languages).items():
                tasks = [group] if group in found.languages else result.groups.get(group, [*found.languages])
                cell, apart = f"{name} {group}", found.differences.get(group)
                numbers: list[float | None] = [
                    *(
                        _mean(scores.nll),
                        _mean(scores.chrf),
                        *found.chrf_interval.get(group, (None, None)),
                        _mean(scores.bleu),
                    ),
                    _finite(found.mean_validation) if comparable and group in found.groups else None,
                ]
                against = [None] * 5 if apart is None else [apart.chrf, *apart.interval, apart.p, apart.p_holm]
                bleu = found.bleu_differences.get(group)
                against_bleu = [None] * 5 if bleu is None else [bleu.bleu, *bleu.interval, bleu.p, bleu.p_holm]
                regret = [
                    table[method].cells.get(cell) if method in table else None
                    for table in (comparison.regret, comparison.regret_of_all)
                ]
                seen = [sum(by.get(task, 0) for task in tasks) or None for by in (found.tokens, found.examples)]
                spent = [*cost.get(method, [None, None]), *seen]
                planned = len(found.seeds) + len(found.missing)
                row = [*numbers, result.baseline, *against, *regret, *spent, *against_bleu]
                title, untrained = GROUP_TITLES.get(group, group), " ".join(map(str, found.untrained))
                writer.writerow(
                    [name, method, title, len(found.seeds), planned, *("" if v is None else v for v in row), untrained]
                )
    return text.getvalue()


def _set_tables(name: str, result: SetResult) -> list[str]:
    """The lines of the tables of one set."""
    pairs = ", ".join(f"{task} {count:,}" for task, count in result.pairs.items())
    seeds = max(len(found.seeds) for found in result.methods.values())
    lines = [f"## {name}", "", f"Training pairs: {pairs}. Mean ± standard deviation over {seeds} seed(s).", ""]
    lines += [*_scores(result), "", *_notes(result)]
    if any(found.differences for found in result.methods.values()):
        lines += [*_differences(result), ""]
    if any(found.trials for found in result.methods.values()):
        lines += [*_trials(result), ""]
    lines += [*bleu_table(result), "", "chrF by language:", "", *_by_language(result, _chrf), ""]
    if all(found.examples for found in result.methods.values()):
        title = "Examples seen in training, in thousands of sentence pairs:"
        lines += [title, "", *_by_language(result, _examples), ""]
    elif any(found.tokens for found in result.methods.values()):
        lines += ["Target tokens seen in training, in thousands:", "", *_by_language(result, _tokens), ""]
    return lines


def _scores(result: SetResult) -> list[str]:
    """The table of the groups' averages, with time and memory."""
    groups = ["all", *result.groups]
    digits = {"nll": 3, "chrf": 1, "bleu": 1}
    columns = [f"{GROUP_TITLES[group]} {metric}" for metric in ("NLL", "chrF", "BLEU") for group in groups]
    cost = _relative_cost(result.methods)
    incomplete = any(found.missing for found in result.methods.values()) or bool(result.not_run)
    rows = [["method", *(["seeds"] if incomplete else []), *columns, *(["time", "memory"] if cost else [])]]
    for method, found in result.methods.items():
        count = [f"{len(found.seeds)} of {len(found.seeds) + len(found.missing)}"] if incomplete else []
        averages = [spread(getattr(found.groups[g], m), digits[m]) for m in METRICS for g in groups]
        rows.append([method, *count, *averages, *([number(value, 2) for value in cost[method]] if cost else [])])
    for method in result.not_run:
        rows.append([method, "not finished", *[""] * (len(rows[0]) - 2)])
    baseline = [
        "" if metric == "nll" else number(result.nearest_neighbour[group].get(metric), 1)
        for metric in METRICS
        for group in groups
    ]
    rows.append(["nearest neighbour", *([""] if incomplete else []), *baseline, *([""] * 2 if cost else [])])
    return _markdown(rows)


def _notes(result: SetResult) -> list[str]:
    """What the table of a set needs to be read: the unit of time and memory, and which models are not trained."""
    lines = []
    if _relative_cost(result.methods):
        unit, (times, what) = _unit(result.methods), _times(result.methods)
        lines += [
            f"Time of training and peak memory of the process relative to {unit}, which took "
            f"{_mean(times[unit]):,.0f} s and {_mean(result.methods[unit].peak_memory) / 2**20:,.0f} MiB.",
            f"It is the {what}: with other work on the machine, small differences mean nothing.",
            "",
        ]
    untrained = [
        f"{method} (seed {', '.join(map(str, found.untrained))})"
        for method, found in result.methods.items()
        if found.untrained
    ]
    if untrained:
        lines += [
            f"Not trained: {'; '.join(untrained)}. There, all translations are empty, or the chrF of every group is",
            "below that of the nearest-neighbour baseline.",
            "",
        ]
    return lines


def _differences(result: SetResult) -> list[str]:
    """The table of each method's chrF with its interval, and its difference to the baseline."""
    groups = list(result.groups)
    rows = [
        [
            "method",
            "validation NLL",
            *(f"{GROUP_TITLES[g]} {what}" for g in groups for what in ("chrF", "difference", "p")),
        ]
    ]
    for method, found in result.methods.items():
        other = " (other lines)" if method in result.other_validation else ""
        row = [method, number(_finite(found.mean_validation), 3) + other]
        for group in groups:
            low, high = found.chrf_interval[group]
            row.append(f"{_mean(found.groups[group].chrf):.1f} ({low:.1f} to {high:.1f})")
            row += _difference(found.differences.get(group), marked=_has_seeds(result, method))
        rows.append(row)
    counts = {len(found.seeds) for found in result.methods.values()}
    which = (
        "all methods" if len(counts) == 1 else f"the methods with {len(result.methods[result.baseline].seeds)} seeds"
    )
    lines = [f"chrF with 95 % intervals, and the difference to {result.baseline}."]
    if not result.named_baseline:
        lines = [
            f"chrF with 95 % intervals, and the difference to {result.baseline}: it has the best validation NLL (mean",
            f"over the groups and the seeds) of {which} that do not use the weights of cats.",
        ]
    lines += [
        "Intervals and p-values are by bootstrap over seeds and clusters of test lines. p is corrected over the",
        f"methods of this table (Holm), for each group by itself, and * marks p < {SIGNIFICANT}.",
    ]
    single = [method for method, found in result.methods.items() if len(found.seeds) == 1]
    if result.other_validation:
        lines += [
            f"The validation NLL of {', '.join(result.other_validation)} is of other lines, or of other pieces, than",
            "that of most methods. It must not be compared with theirs.",
        ]
    if single:
        lines += [
            f"With one seed ({', '.join(single)}), intervals and p-values are of the test lines alone: they say",
            "nothing about other seeds, and nothing is marked.",
        ]
    return [*lines, "", *_markdown(rows)]


def _has_seeds(result: SetResult, method: str) -> bool:
    """Whether a method and the baseline have several seeds: then a difference may be one of the methods."""
    return min(len(result.methods[each].seeds) for each in (method, result.baseline)) > 1


def _difference(found: Difference | None, *, marked: bool) -> list[str]:
    """The cells of a difference and its p-value. marked: with a star if it is significant."""
    if found is None:
        return ["", ""]
    low, high = found.interval
    mark = "*" if marked and found.p_holm < SIGNIFICANT else ""
    return [f"{found.chrf:+.1f} ({low:+.1f} to {high:+.1f}){mark}", f"{found.p_holm:.3f}"]


def bleu_table(result: SetResult) -> list[str]:
    """The lines of the table of BLEU by language, in the form of Table 2 of the CATS paper, with time and memory."""
    columns = [*_tasks(result), *result.groups, "all"]
    means = {
        method: {name: _mean((found.languages | found.groups)[name].bleu) for name in columns}
        for method, found in result.methods.items()
    }
    shown = {name: {f"{values[name]:.1f}" for values in means.values()} for name in columns}
    best = {name: max(texts, key=float) for name, texts in shown.items() if len(texts) > 1}  # of equal ones none is
    cost = _relative_cost(result.methods)
    rows = [["method", *(GROUP_TITLES.get(name, name) for name in columns), *(["time", "memory"] if cost else [])]]
    for method, found in result.methods.items():
        cells = []
        for name in columns:
            text = f"{means[method][name]:.1f}"
            text = f"**{text}**" if text == best.get(name) else text
            apart = found.bleu_differences.get(name)
            text += "†" if apart is not None and apart.is_better and _has_seeds(result, method) else ""
            cells.append(f"({text})" if _is_below(result, found, name) else text)
        rows.append([f"{method}{_verdict(found)}", *cells, *(number(value, 2) for value in cost.get(method, ()))])
    cells = [number(cell.quality.bleu, 1) if (cell := _baseline_cell(result, name)) else "n/a" for name in columns]
    rows.append(["nearest neighbour", *cells, *([""] * 2 if cost else [])])
    legend = ["BLEU by language. Bold: the highest of a column."]
    if result.baseline:
        legend += [
            f"†: better than {result.baseline}, the baseline, with p < {SIGNIFICANT} (by the same bootstrap, corrected",
            "over the methods of the column).",
        ]
    if any(cell.startswith("(") for row in rows[1:-1] for cell in row[1:]):
        legend.append("In parentheses: chrF is below that of the nearest-neighbour baseline, so this was not learnt.")
    return [*legend, "", *_markdown(_turned(rows, len(_tasks(result))))]


def _verdict(found: MethodResult) -> str:
    """ " (not trained)", or that of which seeds; empty if all models are trained."""
    which = "" if found.untrained == found.seeds else f": seed {', '.join(map(str, found.untrained))}"
    return f" (not trained{which})" if found.untrained else ""


def _is_below(result: SetResult, found: MethodResult, name: str) -> bool:
    """Whether the mean chrF of a task or group is below that of the nearest-neighbour baseline."""
    cell = _baseline_cell(result, name)
    theirs = None if cell is None else cell.quality.chrf
    return theirs is not None and _mean((found.languages | found.groups)[name].chrf) < theirs


def _baseline_cell(result: SetResult, name: str) -> Cell | None:
    """The scores of the nearest-neighbour baseline on a task or group."""
    return result.nearest_neighbour.get(name) or result.nearest_neighbour_tasks.get(name)


def _trials(result: SetResult) -> list[str]:
    """The table of the settings that the trials chose."""
    rows = [["method", "chosen", "validation NLL", "trials", "diverged"]]
    for method, found in result.methods.items():
        known = [trial.validation for trial in found.trials if trial.validation is not None]
        if known:
            settings = ", ".join(f"{name}={value}" for name, value in found.chosen.items())
            failed = str(len(found.trials) - len(known))
            rows.append([method, settings, f"{min(known):.3f}", str(len(found.trials)), failed])
    return [
        "Settings chosen by the validation NLL (mean over the groups) of one seed that is not in this table:",
        "",
        aligned(rows, left=2),
    ]


def _by_language(result: SetResult, text: Callable[[MethodResult, str], str]) -> list[str]:
    """A table of texts with a column for each language; with many languages, a row for each."""
    tasks = _tasks(result)
    rows = [["method", *tasks]]
    rows += [[method, *(text(found, task) for task in tasks)] for method, found in result.methods.items()]
    return _markdown(_turned(rows, len(tasks)))


def _tasks(result: SetResult) -> list[str]:
    """The tasks in the order of the groups."""
    return list(dict.fromkeys(task for names in result.groups.values() for task in names))


def _turned(rows: list[list[str]], count: int) -> list[list[str]]:
    """The rows, or the columns of a table of many languages. count: the number of languages."""
    if count <= _MOST_COLUMNS:
        return rows
    rows = [list(row) for row in zip(*rows, strict=True)]
    rows[0][0] = "language"
    return rows


def _chrf(found: MethodResult, task: str) -> str:
    return spread(found.languages[task].chrf, 1)


def _tokens(found: MethodResult, task: str) -> str:
    return f"{found.tokens[task] / 1000:,.0f}" if task in found.tokens else "n/a"


def _examples(found: MethodResult, task: str) -> str:
    return f"{found.examples.get(task, 0) / 1000:,.1f}"


def _relative_cost(methods: Mapping[str, MethodResult]) -> dict[str, list[float | None]]:
    """{method: its time and memory as multiples of those of ``_unit``}; empty if those are not known."""

    def ratio(values: Sequence[float | None], unit: Sequence[float | None]) -> float | None:
        return None if None in values else _mean(values) / _mean(unit)

    times, _ = _times(methods)
    unit = _unit(methods)
    first = methods[unit]
    if None in times[unit] or None in first.peak_memory:
        return {}
    return {
        name: [ratio(times[name], times[unit]), ratio(each.peak_memory, first.peak_memory)]
        for name, each in methods.items()
    }


def _unit(methods: Mapping[str, MethodResult]) -> str:
    """The method that time and memory are relative to: T=1, else the first one."""
    return _PLAIN if _PLAIN in methods else next(iter(methods))


def _times(methods: Mapping[str, MethodResult]) -> tuple[dict[str, list[float | None]], str]:
    """{method: its time of training for each seed}, and what it is: processor time, if it is known of all runs."""
    if all(each.cpu_seconds and None not in each.cpu_seconds for each in methods.values()):
        return {name: each.cpu_seconds for name, each in methods.items()}, "time of the processor"
    return {name: each.seconds for name, each in methods.items()}, "time on the clock"


def _regret_table(comparison: Comparison) -> list[str]:
    """The lines of the table of regrets."""
    tables = [(comparison.regret, "best T"), (comparison.regret_of_all, "best of all")]
    tables = [(regrets, against) for regrets, against in tables if regrets]
    columns = ("against the {}", "95 %, {}", "where, {}", "above the lowest, {}")
    rows = [["method", *(column.format(against) for _, against in tables for column in columns)]]
    rows += [
        [method, *(text for regrets, _ in tables for text in _regret(regrets[method]))]
        for method in comparison.regret_of_all
    ]
    lines = [
        "## Worst regret",
        "",
        "The chrF that a method loses in the worst set and group: to the best fixed temperature (without a restart),",
        "and to the best of all methods of this table. The 95 % intervals are by bootstrap over seeds and clusters of",
        "test lines; the best method and the worst group are chosen again in each resample. A worst regret is the",
        "largest of several numbers with noise: too high on average, which its interval takes into account in part.",
        "*Above the lowest*: how much higher a worst regret is than the lowest of all methods, with the interval of",
        "this difference. A method is in this table if it is in all sets. Regrets of different tables cannot be",
        "compared: each has its own best methods.",
    ]
    seeds = {
        len(result.methods[method].seeds) for result in comparison.sets.values() for method in comparison.regret_of_all
    }
    if 1 in seeds:
        lines.append("Where a method has one seed, the intervals say nothing about other seeds.")
    return [*lines, "", *_markdown(rows), ""]


def _regret(regret: Regret) -> list[str]:
    low, high = regret.interval
    name, _, group = regret.where.partition(" ")
    least, most = regret.above_interval
    above = f"{regret.above:+.1f} ({least:+.1f} to {most:+.1f})" if least or most else ""  # empty for the lowest
    return [f"{regret.worst:.1f}", f"{low:.1f} to {high:.1f}", f"{name} {GROUP_TITLES.get(group, group)}", above]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with one column of text and the rest numbers."""
    return [line_of(rows[0]), "| --- |" + " ---: |" * (len(rows[0]) - 1), *map(line_of, rows[1:])]


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
