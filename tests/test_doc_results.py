"""The scores in docs/results.md and README.md are means of the committed scores of the runs."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean, stdev

import pytest

from tests.conftest import ROOT

METHODS = ROOT / "bench" / "results" / "2026-11-29-methods"
SETS = ("wmt", "ted", "noisy", "diverse")
Runs = dict[
    tuple[str, str], dict[int, dict[str, dict[str, float]]]
]  # {(set, method): {seed: {language: {metric: ..}}}}


def groups() -> dict[str, dict[str, list[str]]]:
    """{set: {lores: languages, hires: languages}}"""
    sets = json.loads((METHODS / "compare.json").read_text(encoding="utf-8"))["sets"]
    help8 = {"lores": ["az", "be", "sk", "tr"], "hires": ["cs", "gl", "pt", "ru"]}
    return {**{name: each["groups"] for name, each in sets.items()}, "help8": help8}


GROUPS = groups()


def read_csv(*names: str) -> Runs:
    """The runs of these files. The file that comes first has a run that is in two of them."""
    runs: Runs = {}
    for name in names:
        with (METHODS / name).open(encoding="utf-8", newline="") as lines:
            found: Runs = {}
            for row in csv.DictReader(lines):
                scores = {metric: float(row[metric]) for metric in ("nll", "chrf", "bleu")}
                seeds = found.setdefault((row["set"], row["method"]), {})
                seeds.setdefault(int(row["seed"]), {})[row["name"]] = scores
        for key, seeds in found.items():
            runs[key] = {**seeds, **runs.get(key, {})}
    return runs


def read_json(name: str) -> Runs:
    results = json.loads((METHODS / name).read_text(encoding="utf-8"))
    return {
        (where, method): {
            seed: {
                language: {metric: values[n] for metric, values in scores.items()}
                for language, scores in each["languages"].items()
            }
            for n, seed in enumerate(results["seeds"])
        }
        for where, found in results["sets"].items()
        for method, each in found["methods"].items()
    }


def of_seeds(runs: Runs, where: str, method: str, group: str, metric: str = "chrf") -> dict[int, float]:
    """{seed: the mean over the languages of the group}"""
    languages = GROUPS[where][group]
    return {
        seed: mean(scores[language][metric] for language in languages) for seed, scores in runs[where, method].items()
    }


def score(runs: Runs, where: str, method: str, group: str, metric: str = "chrf") -> float:
    return mean(of_seeds(runs, where, method, group, metric).values())


def both(runs: Runs, where: str, method: str, metric: str = "chrf") -> list[float]:
    return [score(runs, where, method, group, metric) for group in ("lores", "hires")]


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def pairs(cell: str) -> list[list[float]]:
    """All "LoRes / HiRes" of a cell."""
    return [[number(low), number(high)] for low, high in re.findall(r"([+−]?[\d.]+) / ([+−]?[\d.]+)", cell)]


def close(given: float, exact: float, digits: int = 1) -> bool:
    """Whether the given number is the exact one, rounded to so many digits."""
    return math.isclose(given, exact, abs_tol=0.5 * 10**-digits + 1e-9)


def tables(page: str, heading: str) -> list[list[list[str]]]:
    """The cells of the tables below a heading, without the lines under the headers."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert text, f"{page} has no heading {heading}"
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| ---"):
            continue
        if line.startswith("| "):
            found[-1].append([cell.strip() for cell in line[1:-1].split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@dataclass(frozen=True)
class Table:
    """A table of docs, and the runs that it shows.

    Attributes:
        rows: how many it has.
        index: which one below its heading it is.
        names: {the label of a row: the method in the files}, where it is not the label's beginning.
    """

    page: str
    heading: str
    runs: Runs
    rows: int
    index: int = 0
    names: dict[str, str] = field(default_factory=dict)

    def method(self, label: str) -> str:
        return self.names.get(label) or re.split(r":? \(|: |, ", label)[0]


ALL = read_csv("compare.csv")
ONCE = read_csv("each-method-once/compare.csv")
SEVERAL = read_csv(
    "compare.csv", "temperatures-and-weights/wmt-ted.csv", "temperatures-and-weights/noisy.csv",
    "each-method-once/compare.csv",
)  # fmt: skip
GRADIENTS = read_csv("gradients-and-earlier-runs/wmt.csv", "gradients-and-earlier-runs/ted.csv")
RESTARTS = read_csv("restarts/wmt.csv", "restarts/ted.csv")

TABLES = [
    Table("README.md", "When to use it, and when not", ALL, 6),
    Table("docs/guide/should-i-use-cats.md", "The measured tables", ALL, 6),
    Table("docs/results.md", "The comparison", ALL, 6),
    Table(
        "docs/results.md", "The comparison", read_json("controls/compare.json"), 4, 1, {"staged at T=4": "staged4"},
    ),
    Table("docs/results.md", "Each method once", ONCE, 29),
    Table("docs/results.md", "Temperatures, restarts and weights", SEVERAL, 13),
    Table(
        "docs/results.md", "Methods with a gradient of each task, and those that need earlier runs", GRADIENTS, 12,
        names={
            "double-power-law, fitted to T=1, 3, 5 and ∞": "law", "adaptive, with T=3 as the baseline": "adaptive-T3",
            "doremi, its proxy over T=1": "proxy", "doremi, its mean mixture": "from-proxy",
        },
    ),
    Table("docs/results.md", "The same restart for other methods", RESTARTS, 12),
    Table(
        "docs/results.md", "Rules of TorchJD", read_csv("rules/wmt.csv", "rules/ted.csv"), 9,
        names={
            "gradvac by layer": "gradvac-layer", "torchjd:CAGrad": "cagrad", "torchjd:FairGrad": "fairgrad",
        },
    ),
]  # fmt: skip


def test_seed_11_of_the_unseen_set() -> None:
    _, *rows = tables("docs/results.md", "Temperatures, restarts and weights")[1]
    runs = read_csv("compare.csv", "temperatures-and-weights/diverse.csv")
    found = {
        method: [of_seeds(runs, "diverse", method, group)[11] for group in ("lores", "hires")] for method, _ in rows
    }
    assert len(found) == 12
    for method, cell in rows:
        assert all(map(close, pairs(cell)[0], found[method])), method
    gains = [[b - a for a, b in zip(found[t], found[f"{t}r"], strict=True)] for t in ("T=1", "T=3", "T=5", "T=inf")]
    low, high = ([gain[i] for gain in gains] for i in range(2))
    sentence = (
        f"{min(low):.1f} to {max(low):.1f} on the small languages and {min(high):.1f} to {max(high):.1f} on the large"
    )
    assert sentence in results_text(), sentence


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.heading} {table.index}")
def test_scores_are_the_means_of_the_runs(table: Table) -> None:
    header, *rows = tables(table.page, table.heading)[table.index]
    assert len(rows) == table.rows
    columns = {n: where for n, title in enumerate(header) for where in SETS if title.partition(" ")[0] == where}
    assert columns
    for row in rows:
        for n, where in columns.items():
            if "beside T=3" in row[n]:
                continue
            (given,) = pairs(row[n])
            exact = both(table.runs, where, table.method(row[0]))
            assert all(map(close, given, exact)), (row[0], where, given, exact)


def test_scores_of_runs_of_another_machine() -> None:
    """Those with "beside T=3 at" in the table above."""
    _, *rows = tables("docs/results.md", "Methods with a gradient of each task, and those that need earlier runs")[0]
    files = {
        "target-projection": "gradients-and-earlier-runs/target-projection-wmt.csv",
        "multidds": "temperatures-and-weights/multidds-wmt.csv",
    }
    checked = 0
    for row in rows:
        if "beside T=3" in row[1]:
            runs = {**ONCE, **read_csv(files[row[0]])}
            own, beside = pairs(row[1])
            assert all(map(close, own, both(runs, "wmt", row[0])))
            assert all(map(close, beside, both(runs, "wmt", "T=3")))
            checked += 1
    assert checked == len(files)


def worst_regrets(runs: Runs, where: Iterable[str], methods: Iterable[str]) -> dict[str, float]:
    """{method: what it loses to the best of these methods in its worst set and group}"""
    best = {(each, group): max(score(runs, each, method, group) for method in methods)
            for each in where for group in ("lores", "hires")}  # fmt: skip
    return {
        method: max(value - score(runs, each, method, group) for (each, group), value in best.items())
        for method in methods
    }


@pytest.mark.parametrize(
    ("page", "heading", "runs", "where", "rows"),
    [
        ("README.md", "When to use it, and when not", ALL, SETS, 6),
        ("docs/guide/should-i-use-cats.md", "The measured tables", ALL, SETS, 6),
        ("docs/results.md", "The comparison", ALL, SETS, 6),
        ("docs/results.md", "Each method once", ONCE, ("wmt", "ted"), 29),
        ("docs/results.md", "Temperatures, restarts and weights", SEVERAL, ("wmt", "ted", "noisy"), 13),
    ],
    ids=["README.md", "guide", "comparison", "once", "several"],
)
def test_worst_regrets(page: str, heading: str, runs: Runs, where: tuple[str, ...], rows: int) -> None:
    header, *found = tables(page, heading)[0]
    exact = worst_regrets(runs, where, {method for _, method in runs if all((each, method) in runs for each in where)})
    assert len(found) == rows
    for row in found:
        (method,) = {row[0], row[0].partition(":")[0], row[0].partition(" (")[0]} & exact.keys()
        assert close(number(row[header.index("worst regret")]), exact[method]), row


def read_summary() -> dict[tuple[str, str, str], dict[str, str]]:
    """{(set, method, group): the row of compare-summary.csv}"""
    with (METHODS / "compare-summary.csv").open(encoding="utf-8", newline="") as lines:
        return {(row["set"], row["method"], row["group"]): row for row in csv.DictReader(lines)}


def test_differences_to_the_baseline() -> None:
    summary = read_summary()
    header, *rows = tables("docs/results.md", "The comparison")[2]
    assert [row[0] for row in rows] == list(SETS)
    for row in rows:
        for title, cell in zip(header[1:], row[1:], strict=True):
            metric, group = title.split(", ")
            prefix = "bleu_difference" if metric == "BLEU" else "difference"
            of_group = summary[row[0], "staged-cats", group]
            exact = [float(of_group[f"{prefix}{part}"]) for part in ("", "_low", "_high")]
            given = [number(each) for each in re.findall(r"[+−][\d.]+", cell)]
            assert len(given) == 3 and all(map(close, given, exact)), (row[0], title)


def test_what_the_restart_and_the_order_add() -> None:
    text, summary = results_text(), read_summary()
    steps = [
        [score(ALL, where, method, "lores") - score(ALL, where, other, "lores") for where in SETS]
        for method, other in (("T=3r", "T=3"), ("staged", "T=3r"))
    ]
    assert f"the restart gains {min(steps[0]):.1f} to {max(steps[0]):.1f} chrF" in text
    assert f"the order another {min(steps[1]):.1f} to {max(steps[1]):.1f}" in text
    # Of the two methods, one is the baseline of the set, and the other has the p-value.
    p = [
        float(summary[where, method, "LoRes"]["p_holm"])
        for where in SETS
        for method in ("T=3r", "staged")
        if summary[where, method, "LoRes"]["baseline"] != method
    ]
    assert len(p) == 4 and f"(p = {min(p):.2f} to {max(p):.2f})" in text, p


ORDERS = ("T=3r", "staged", "staged-cats")  # with a restart

# Sentences: they are formed here and looked for in the text.

T_QUANTILE = {2: 4.303, 4: 2.776}  # of Student's t, 97.5 %, by degrees of freedom


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def paired(runs: Runs, where: str, method: str, other: str, group: str, metric: str = "chrf") -> str:
    """The mean difference of the seeds with its 95 % interval, which takes the differences as normal."""
    own, others = (of_seeds(runs, where, each, group, metric) for each in (method, other))
    differences = [own[seed] - others[seed] for seed in own]
    half = T_QUANTILE[len(differences) - 1] * stdev(differences) / math.sqrt(len(differences))
    centre = mean(differences)
    return f"{signed(centre)} ({signed(centre - half)} to {signed(centre + half)})"


def results_text() -> str:
    return " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())


def test_paired_differences() -> None:
    text = results_text()
    of = {
        (metric, group): paired(ALL, "wmt", "staged-cats", "staged", group, metric)
        for metric in ("chrf", "bleu")
        for group in ("lores", "hires")
    }
    sentence = "chrF {} and {}, BLEU {} and {}".format(*of.values())
    assert sentence in text, sentence


def test_difference_to_the_same_order_at_its_temperature() -> None:
    """On noisy, where that is the baseline; its intervals are those of the comparison."""
    controls = json.loads((METHODS / "controls" / "compare.json").read_text(encoding="utf-8"))["sets"]["noisy"]
    assert controls["baseline"] == "staged4"
    found = controls["methods"]["staged-cats"]["differences"]
    low, high = (
        f"{signed(each['chrf'])} ({signed(each['interval'][0])} to {signed(each['interval'][1])})"
        for each in (found["lores"], found["hires"])
    )
    assert f"the differences to that are {low} and {high} chrF." in results_text(), (low, high)
    bleu = controls["methods"]["staged-cats"]["bleu_differences"]["all"]
    text = f"{signed(bleu['bleu'])} ({signed(bleu['interval'][0])} to {signed(bleu['interval'][1])})"
    assert f"against `staged` at T=4 that difference is {text}" in results_text(), text


def test_gains_beside_those_of_the_paper() -> None:
    text = results_text()

    def gain(where: str, method: str, other: str, group: str = "lores") -> str:
        return signed(score(SEVERAL, where, method, group, "bleu") - score(SEVERAL, where, other, group, "bleu"))

    def best(where: str, temperatures: tuple[str, ...] = ("T=1", "T=3", "T=5", "T=inf")) -> str:
        return max(temperatures, key=lambda each: score(SEVERAL, where, each, "lores", "bleu"))

    small = ("wmt", "ted", "noisy")
    parts = [f"{gain(where, 'cats', best(where))} (`{where}`, {best(where).replace('inf', '∞')})" for where in small]
    sentence = "gives {}, {} and {} BLEU".format(*parts)
    assert sentence in text, sentence
    sentence = "against T=5 it is {}, {} and {}.".format(*(gain(where, "cats", "T=5") for where in small))
    assert sentence in text, sentence
    gains = [gain(where, "staged-cats", best(where)) for where in small]
    unseen = gain("diverse", "staged-cats", best("diverse", ("T=1", "T=3", "T=5")))
    sentence = "gains {} (`wmt`), {} (`ted`), {} (`noisy`) and {} BLEU (`diverse`, without T=∞)".format(*gains, unseen)
    assert sentence in text, sentence
    gains = [gain(where, "staged-cats", "staged", group) for group in ("lores", "hires") for where in SETS]
    sentence = "against `staged` it is {}, {}, {} and {} on LoRes and {}, {}, {} and {} on HiRes.".format(*gains)
    assert sentence in text, sentence


EMA = read_csv("ema/compare.csv", "ema/noisy.csv", "ema/noisy-diverse.csv", "ema/noisy-diverse-13.csv")


def averaged(where: str, method: str) -> str:
    """The name of a method with the average of the parameters, in the runs of this set."""
    names = f"{method}-ema", f"{method.removeprefix('staged-')}-ema"
    return next(name for name in names if (where, name) in EMA)


@pytest.mark.parametrize(("index", "where", "rows"), [(0, ("wmt", "ted"), 3), (1, ("noisy", "diverse"), 2)])
def test_average_of_the_parameters(index: int, where: tuple[str, ...], rows: int) -> None:
    header, *found = tables("docs/results.md", "The average of the parameters")[index]
    assert [title.rpartition(", ")[2] for title in header] == ["method", *where, *where]
    assert len(found) == rows
    for row in found:
        for n, each in enumerate(where):
            with_it, without = both(EMA, each, averaged(each, row[0])), both(EMA, each, row[0])
            (own,), (gain,) = pairs(row[1 + n]), pairs(row[1 + len(where) + n])
            assert len(EMA[each, row[0]]) == len(EMA[each, averaged(each, row[0])]) == 3
            assert all(map(close, own, with_it)), (row[0], each)
            assert all(map(close, gain, [a - b for a, b in zip(with_it, without, strict=True)])), (row[0], each)


def test_differences_with_the_average_of_the_parameters() -> None:
    _, *rows = tables("docs/results.md", "The average of the parameters")[2]
    assert [row[0] for row in rows] == list(SETS)
    lost: dict[str, list[float]] = {"staged": [], "staged-cats": []}
    for where, *cells in rows:
        own, other = averaged(where, "staged-cats"), averaged(where, "staged")
        for cell, group in zip(cells, ("lores", "hires"), strict=True):
            assert cell == paired(EMA, where, own, other, group), (where, group)
            difference = score(EMA, where, own, group) - score(EMA, where, other, group)
            lost["staged"].append(difference)
            lost["staged-cats"].append(-difference)
    text = results_text()
    regrets = f"{max(lost['staged-cats']):.1f} for staged-cats and {max(lost['staged']):.1f} for `staged`, on the small"
    assert f"The worst regret is {regrets} languages of `diverse`" in text


def test_the_comparison_repeated_on_another_machine() -> None:
    text, runs = results_text(), read_csv("ema/noisy-diverse.csv")  # seeds 11 and 12
    for where in ("noisy", "diverse"):
        gains = [
            score(runs, where, "staged-cats", group) - score(runs, where, "staged", group)
            for group in ("lores", "hires")
        ]
        assert f"{signed(gains[0])} / {signed(gains[1])} on `{where}`" in text, gains
        if where == "noisy":
            assert f"but {gains[0]:.1f} when two of these were trained again" in text
            gains = [
                score(runs, where, "cats-ema", g) - score(runs, where, "staged-ema", g) for g in ("lores", "hires")
            ]
            assert f"on another machine seeds 11 and 12 gave {signed(gains[0])} / {signed(gains[1])}." in text, gains


HELP8 = read_csv("help8/compare.csv", "help8/temperatures.csv", "help8/seeds-12-13.csv")


def test_free_text() -> None:
    _, *rows = tables("docs/results.md", "Free text")[0]
    assert len(rows) == 6
    for method, nll, chrf in rows:
        assert len(HELP8["help8", method]) == 3
        for cell, metric, digits in (nll, "nll", 2), (chrf, "chrf", 1):
            (given,) = pairs(cell)
            exact = both(HELP8, "help8", method, metric)
            assert all(close(a, b, digits) for a, b in zip(given, exact, strict=True)), (method, metric, exact)


def test_losses_of_free_text_beside_each_other() -> None:
    text = results_text()
    mean_loss = {method: mean(both(HELP8, "help8", method, "nll")) for method in ("T=3", "T=5", *ORDERS)}
    gaps = [mean_loss[each] - mean_loss[order] for each in ("T=3", "T=5") for order in ORDERS]
    assert f"by {min(gaps):.2f} to {max(gaps):.2f} nats over T=3 and T=5" in text, gaps
    for group, words in ("lores", "0.03 nats less on the small languages"), ("hires", "0.03 more on the large ones"):
        own, other = (of_seeds(HELP8, "help8", method, group, "nll") for method in ("staged-cats", "staged"))
        differences = [abs(own[seed] - other[seed]) for seed in own]
        assert words in text
        assert close(0.03, mean(differences), 2)
        assert all((own[seed] < other[seed]) == (group == "lores") for seed in own)
    for seed in (11, 12, 13):
        of_seed = {
            method: mean(of_seeds(HELP8, "help8", method, group, "nll")[seed] for group in ("lores", "hires"))
            for method in ("T=1", "T=3", "T=5", *ORDERS)
        }
        assert {*sorted(of_seed, key=of_seed.__getitem__)[:3]} == {*ORDERS}


def test_when_alpha_moves_and_its_other_settings() -> None:
    _, *rows = tables("docs/results.md", "When α moves, from which layers, and its other settings")[0]
    files = {
        "staged-cats": ("settings", "staged-cats"), "early": ("early", "staged-cats"), "late": ("late", "staged-cats"),
        "inner products over the encoder only": ("encoder", "staged-cats"),
        "inner products over the decoder only": ("decoder", "staged-cats"),
        "`method.cross_batch=true`": ("settings", "cross"), "`method.floor=0`": ("settings", "floor0"),
        "`method.floor=0.3`": ("settings", "floor30"), "staged, for comparison": ("", "staged"),
    }  # fmt: skip
    labels = [re.split(r": | \(", row[0])[0] for row in rows]
    assert labels == list(files)
    for label, row in zip(labels, rows, strict=True):
        file, method = files[label]
        for cell, where in zip(row[1:], ("wmt", "noisy"), strict=True):
            (given,) = pairs(cell)
            plain = "restarts/wmt.csv" if where == "wmt" else "ema/noisy-diverse.csv"
            runs = read_csv(f"alpha/{file}.csv" if file else plain)
            exact = [of_seeds(runs, where, method, group)[11] for group in ("lores", "hires")]
            assert all(map(close, given, exact)), (label, where, given, exact)
