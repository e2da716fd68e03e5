"""A run told in one page: report.md with the table, loss.png and alpha.png beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cats.nmt.config.schema import read_config, to_toml
from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write
from cats.nmt.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
MOST_LABELS = 12  # languages that get a colour and a label of their own; of more, only the groups do
INK, GRID = "#333333", "#dddddd"


def write(run: Path) -> None:
    """Writes report.md, loss.png and alpha.png of an evaluated run.

    Raises:
        UserError: the run is not evaluated, a file of it is damaged, matplotlib is missing, or the disk is full.
    """
    scores = read_scores(run)
    records = read_metrics(run / "metrics.jsonl")
    atomic_write(run / "report.md", markdown(run, scores, records))
    draw_loss(records, scores, run / "loss.png")
    draw_alpha(records, scores, run / "alpha.png")


def read_scores(run: Path, name: str = "scores.json") -> dict[str, Any]:
    """The run's scores.json, or another file of scores."""
    try:
        scores = json.loads((run / name).read_text(encoding="utf-8"))
        if not isinstance(scores, dict) or not {"languages", "groups", "lookup", "seconds"} <= scores.keys():
            raise ValueError("not what evaluate writes")
    except FileNotFoundError:
        raise UserError(f"{run} holds no {name}; make it with: cats evaluate {run}") from None
    except ValueError:
        raise UserError(f"{run}/{name} is damaged; make it anew with: cats evaluate {run}") from None
    return scores


def table(scores: Mapping[str, Any]) -> str:
    """The scores as an aligned Markdown table: languages from the smallest to the largest, then the groups."""
    lookup = scores["lookup"]
    rows = [["language", "group", "pairs", "BLEU", "chrF", "NLL", "lookup chrF"]]
    for name, title, pairs, cell in _cells(scores):
        baseline = lookup["languages"].get(name) or lookup["groups"][name]
        rows.append([*_heads(name, title, pairs), *_numbers(cell, baseline)])
    return aligned(rows, left=2)


def more_scores(scores: Mapping[str, Any]) -> str:
    """The other scores as a table of the same rows, and zero-shot directions below."""
    rows = [["language", "group", "pairs", *(title for title, _ in MORE.values())]]
    rows += [[*_heads(name, title, pairs), *_more(cell)] for name, title, pairs, cell in _cells(scores)]
    rows += [[name, "zero-shot", "0", *_more(cell)] for name, cell in scores.get("zero_shot", {}).items()]
    return aligned(rows, left=2)


def zero_shot(scores: Mapping[str, Any]) -> str:
    """A table of the directions without training text."""
    rows = [["direction", "lines", "BLEU", "chrF", "NLL"]]
    rows += [[n, f"{c['lines']:,}", *_numbers(c, {"chrf": None})[:3]] for n, c in scores.get("zero_shot", {}).items()]
    return aligned(rows, left=1)


def side_by_side(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the same run's scores with several checkpoints, {name: scores}."""
    metrics = (("BLEU", "bleu", 1), ("chrF", "chrf", 1), ("NLL", "nll", 3))
    rows = [["language", "group", "pairs", *(f"{title} {name}" for title, _, _ in metrics for name in scores)]]
    first = next(iter(scores.values()))
    for language, title, pairs, _ in _cells(first):
        cells = [each["languages"].get(language) or each["groups"].get(language, {}) for each in scores.values()]
        values = [_number(cell.get(metric), digits) for _, metric, digits in metrics for cell in cells]
        rows.append([*_heads(language, title, pairs), *values])
    return aligned(rows, left=2)


def as_csv(scores: Mapping[str, Any]) -> str:
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


def verdict(scores: Mapping[str, Any]) -> str:
    """Whether the model beats the lookup baseline, in one line."""
    below = [group for group, beats in scores["beats_lookup"].items() if beats is False]
    if not any(beats is not None for beats in scores["beats_lookup"].values()):
        return "No lookup (the nearest training sentence, digits replaced) to compare with: too much training text."
    if not below:
        beaten = [TITLES[group] for group, beats in scores["beats_lookup"].items() if beats]
        where = (
            "every group" if len(beaten) == len(scores["beats_lookup"]) else f"{', '.join(beaten)}; the rest has none"
        )
        return f"Beats lookup (the nearest training sentence, digits replaced) in {where}."
    cells = [
        f"{TITLES[g]} (chrF {scores['groups'][g]['chrf']:.1f} against {scores['lookup']['groups'][g]['chrf']:.1f})"
        for g in below
    ]
    return f"Below lookup in {', '.join(cells)}: not trained."


def markdown(run: Path, scores: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The text of report.md."""
    best = max((r["step"] for r in records if r.get("best")), default=None)
    speed = scores["tokens_per_second"]
    facts = [
        f"corpus {scores['corpus']}",
        f"method {scores['method']}, temperature {scores['temperature']}",
        f"{scores['steps']:,} updates" + (f", best by validation NLL after {best:,}" if best is not None else ""),
        f"seed {scores['seed']}",
    ]
    if speed:
        facts.append(f"{scores['seconds']:,.0f} s of training at {speed:,.0f} target tokens/s")
    headline = scores["headline"]
    basis = f"the {scores['split']} lines of stratum {headline}" if headline else f"all {scores['split']} lines"
    signatures = _signatures(scores["signatures"])
    lines = [
        f"# {run.resolve().name}",
        "",
        *[f"- {fact}" for fact in facts],
        "",
        table(scores),
        "",
        verdict(scores),
        "",
        f"BLEU and chrF are on {basis}; NLL is in nats per target token over all {scores['split']} lines, without",
        f"smoothing. Groups are macro-averages; {_grouping(run)}.",
        "",
        "## More scores",
        "",
        more_scores(scores),
        "",
        "PPL is exp(NLL). Off-target is the share of lines that are not in the target language, by script and, among",
        "languages of one script, by character n-grams; what it says of the references themselves is its error.",
        "",
    ]
    if scores.get("zero_shot", {}):
        lines += ["## Zero-shot", "", "Directions without training text; they have no part in the averages.", ""]
        lines += [zero_shot(scores), ""]
    others = {path.name.split(".")[1]: path.name for path in sorted(run.glob("scores.*.json"))}
    others = {name: file for name, file in others.items() if name not in ("train", "valid")}
    if others:
        checkpoints = {"best": scores, **{name: read_scores(run, file) for name, file in others.items()}}
        lines += ["## Checkpoints", "", side_by_side(checkpoints), ""]
    if scores["strata"]:
        lines += ["## By stratum", "", _strata(scores), ""]
    lines += ["## Training", "", "![loss per language](loss.png)", "", "![alpha per language](alpha.png)", ""]
    lines += ["## Signatures", "", *[f"- {line}" for line in signatures], ""]
    lines += ["## Settings", "", "```toml", to_toml(read_config(run / "config.toml")).rstrip(), "```", ""]
    return "\n".join(lines)


def _grouping(run: Path) -> str:
    """What makes a language LoRes, in words."""
    given = read_config(run / "config.toml").evaluate
    if given.lores or given.midres or given.hires:
        return "which language is in which was configured"
    bound = f"{given.lores_below:,}" if given.lores_below else "the mean"
    high = f", HiRes those with at least {given.hires_from:,}" if given.hires_from else ""
    return f"LoRes are the languages with fewer training pairs than {bound}{high}"


def _strata(scores: Mapping[str, Any]) -> str:
    groups = [group for group, cell in scores["groups"].items() if cell["languages"]]
    rows = [["stratum", "lines", *[f"{TITLES[g]} {m}" for g in groups for m in ("chrF", "lookup", "NLL")]]]
    for name, part in scores["strata"].items():
        row = [name, f"{sum(cell['lines'] for cell in part['languages'].values()):,}"]
        for g in groups:
            cell, baseline = part["groups"][g], part["lookup"]["groups"][g]
            row += [_number(cell["chrf"], 1), _number(baseline["chrf"], 1), _number(cell["nll"], 3)]
        rows.append(row)
    return aligned(rows, left=1)


def _signatures(signatures: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line per signature, with the languages that have it where they are not all."""
    lines = []
    titles = {"bleu": "BLEU", "bleu_13a": "BLEU with 13a", "chrf": "chrF", "chrfpp": "chrF++", "spbleu": "spBLEU"}
    for metric, by_language in signatures.items():
        names: dict[str, list[str]] = {}
        for language, signature in by_language.items():
            names.setdefault(signature, []).append(language)
        for signature, languages in names.items():
            where = f" ({', '.join(languages)})" if len(names) > 1 else ""
            lines.append(f"{titles[metric]}{where}: `{signature}`")
    return lines


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


def new_figure(panels: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, in the project's style, as wide as a README; no window is ever opened.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib; install it with: pip install 'cats-optim[nmt]'") from None
    figure = Figure(figsize=(8.4, 3.8 if panels > 1 else 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, sharey=sharey, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(colors=INK, labelsize=9)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
        axis.title.set_size(10.5)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())


def draw_loss(records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any], path: Path) -> None:
    """Training NLL (a running mean) and validation NLL per language over the updates, on one scale."""
    training: dict[str, list[tuple[int, float]]] = {}
    validation: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.get("losses", {}).items():
            if value is not None:  # what diverged is not finite, and null
                training.setdefault(name, []).append((record["step"], value))
        for name, value in record.get("valid", {}).get("nll", {}).items():
            if value is not None:
                validation.setdefault(name, []).append((record["step"], value))
    panels = {"training (running mean)": {n: _smooth(p) for n, p in training.items()}}
    if validation:
        panels["validation"] = validation
    figure, axes = new_figure(len(panels), sharey=True)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        _curves(axis, curves, scores)
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel("update")
    axes[0].set_ylabel("NLL, nats per target token")
    _label_ends(axes[-1])
    _legend(axes[0], scores)
    save_figure(figure, path)


def draw_alpha(records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any], path: Path) -> None:
    """The tasks' shares of the sum of α over the updates, uniform weighting dotted; logarithmic, unless one is 0."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        alpha = record.get("alpha", {})
        total = sum(alpha.values())
        for name, value in alpha.items():
            curves.setdefault(name, []).append((record["step"], value / total if total else 0.0))
    figure, (axis,) = new_figure(1)
    _curves(axis, curves, scores)
    uniform = 1 / max(1, len(curves))
    axis.axhline(uniform, color=INK, linewidth=0.9, linestyle=":", zorder=1)
    if curves and all(value > 0 for points in curves.values() for _, value in points):
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

        axis.set_yscale("log")
        # Weights that hardly move must look so: never less than a tenth up and down is shown.
        low, high = axis.get_ylim()
        low, high = min(low, uniform / 1.1), max(high, uniform * 1.1)
        axis.set_ylim(low, high)
        if high < 12 * low:  # within a decade ticks at powers of ten alone would say nothing
            axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("update")
    axis.set_ylabel("α, share of the total")
    axis.set_title(f"task weights, method {scores['method']}", loc="left", color=INK)
    _label_ends(axis)
    _legend(axis, scores, dotted="uniform")
    save_figure(figure, path)


def _smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Mean over a window of 1/20 of the curve around each point; a language has few tokens in each update."""
    half = len(points) // 40
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    at = np.arange(len(points))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(points))
    means = (sums[last] - sums[first]) / (last - first)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def _curves(axis: Axes, curves: Mapping[str, list[tuple[int, float]]], scores: Mapping[str, Any]) -> None:
    """One line per language, LoRes warm and solid, HiRes cool and dashed; of many, the groups' means stand out."""
    from matplotlib import colormaps

    low, middle = ({*scores["groups"].get(group, {}).get("languages", ())} for group in ("lores", "midres"))
    names = sorted(curves, key=lambda name: (scores["languages"][name]["pairs"], name))
    few = len(names) <= MOST_LABELS
    for title, palette, style, members in (
        ("LoRes", colormaps["YlOrRd"], "-", [name for name in names if name in low]),
        ("MidRes", colormaps["Greens"], "-.", [name for name in names if name in middle]),
        ("HiRes", colormaps["YlGnBu"], "--", [name for name in names if name not in low | middle]),
    ):
        for i, name in enumerate(members):
            colour = palette(0.95 - 0.45 * i / max(1, len(members) - 1))
            steps, values = zip(*curves[name], strict=True)
            width, opacity, label = (1.6, 1.0, name) if few else (0.7, 0.4, "_")
            axis.plot(steps, values, style, color=colour, linewidth=width, alpha=opacity, label=label)
        if members and not few:
            steps, values = zip(*_mean([curves[name] for name in members]), strict=True)
            axis.plot(steps, values, style, color=palette(0.9), linewidth=2.4, label=title)
    axis.set_xlim(0, max((points[-1][0] for points in curves.values()), default=1))


def _mean(curves: Sequence[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean of several curves, at the steps where any of them has a value."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    return [(step, sum(here) / len(here)) for step, here in sorted(values.items())]


def _label_ends(axis: Axes) -> None:
    """Names every labelled line at its right end, moved up or down where names would touch. Set the scales before."""
    gap = 0.055  # of the axes' height: one line of text
    axis.autoscale_view()  # matplotlib leaves it for later, but the heights below depend on it
    ends = []
    for line in axis.get_lines():
        if not str(line.get_label()).startswith("_"):
            point = axis.transData.transform(np.asarray(line.get_xydata())[-1])
            ends.append((float(axis.transAxes.inverted().transform(point)[1]), line))
    ends.sort(key=lambda end: end[0])
    heights = _spread([end for end, _ in ends], gap)
    for height, (end, line) in zip(heights, ends, strict=True):
        axis.annotate(
            str(line.get_label()),
            xy=(1.005, end),
            xytext=(1.04, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=line.get_color(),
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved as little as possible (least squares) to be ``gap`` apart and in 0.03 .. 1."""
    # With the gaps taken out this is isotonic regression: blocks that are out of order are merged to their mean.
    blocks: list[tuple[float, int]] = []
    for i, height in enumerate(heights):
        mean, count = height - i * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean, count = (mean * count + before * size) / (count + size), count + size
        blocks.append((mean, count))
    highest = max(0.03, 1 - (len(heights) - 1) * gap)
    flat = [min(max(mean, 0.03), highest) for mean, count in blocks for _ in range(count)]
    return [mean + i * gap for i, mean in enumerate(flat)]


def _legend(axis: Axes, scores: Mapping[str, Any], dotted: str | None = None) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="#bd0026", linestyle="-", label="LoRes"),
        Line2D([], [], color="#225ea8", linestyle="--", label="HiRes"),
    ]
    if "midres" in scores["groups"]:
        handles.insert(1, Line2D([], [], color="#238b45", linestyle="-.", label="MidRes"))
    if dotted:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label=dotted))
    axis.legend(handles=handles, frameon=False, fontsize=9, loc="best", labelcolor=INK)
