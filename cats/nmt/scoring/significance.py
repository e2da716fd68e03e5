"""`cats significance`: is run B really better than run A, or would other test lines have said otherwise?

Two tests of the difference of two systems on the same lines. Paired bootstrap resampling (Koehn, 2004): lines are drawn
with replacement; its p-value is that of the resampled differences shifted to mean 0. Approximate randomisation
(Riezler & Maxwell, 2005): every line's two translations are swapped or not; p is the share of swappings with a
difference as large as the real one. Both are two-sided. A group's average is tested by resampling sentences of
the language that its tasks share, in all of them at once: the same sentence in several languages is no independent
evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.files import read_output
from cats.nmt.scoring.bootstrap import bleu, bleu_counts, chrf, chrf_counts
from cats.nmt.scoring.report import read_scores
from cats.nmt.scoring.tables import TITLES, aligned

RESAMPLES = 1000  # of the bootstrap
TRIALS = 10_000  # of the randomisation
_CHUNK = 250  # of either at a time, for the memory's sake


class Lines(NamedTuple):
    """The test lines of one task: source, reference and what either run made of them."""

    source: list[str]
    reference: list[str]
    first: list[str]
    second: list[str]


class Counts(NamedTuple):
    """What a score is computed from, (lines, ..) for either run, and how."""

    first: np.ndarray
    second: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]


def compare(first: Path, second: Path, seed: int = 1) -> list[dict[str, Any]]:
    """One row per language and group of two evaluated runs, and metric (BLEU, chrF), over all test lines.

    Of runs with different tasks, such as a bilingual and a multilingual one, those that they share are compared.

    Returns:
        Rows of "name", "metric", "first" and "second" (scores), "difference" (second - first) with its 95 % "interval",
        "p_bootstrap" and "p_randomisation".

    Raises:
        UserError: a run is not evaluated, a file of translations is missing, the runs have no task in common, or
            different references.
    """
    scores = read_scores(first)
    theirs = _scored(read_scores(second))
    names = [name for name in _scored(scores) if name in theirs]
    if not names:
        raise UserError(f"{first} and {second} have no task in common: they cannot be compared")
    tasks = {name: _read(first, second, name) for name in names}
    try:
        tokenizers = {name: _tokenizer(scores["signatures"]["bleu"][name]) for name in names}
    except (KeyError, TypeError, StopIteration):
        raise UserError(
            f"{first}/scores.json is damaged or of an older version; again: cats evaluate {first}"
        ) from None
    units = _units(tasks)
    groups = {TITLES[g]: [n for n in cell["languages"] if n in tasks] for g, cell in scores["groups"].items()}
    rows = []
    for metric, count in (("BLEU", _bleu_counts), ("chrF", _chrf_counts)):
        counts = {name: count(lines, tokenizers[name]) for name, lines in tasks.items()}
        for name in names:
            own = {name: np.arange(len(units[name]))}
            rows.append({"name": name, "metric": metric, **paired_tests({name: counts[name]}, own, seed)})
        for title, members in groups.items():
            if members:
                chosen = {name: counts[name] for name in members}
                rows.append({"name": title, "metric": metric, **paired_tests(chosen, units, seed)})
    return rows


def unshared(first: Path, second: Path) -> list[str]:
    """The tasks with test lines that only one of two runs has, which ``compare`` leaves out."""
    return sorted({*_scored(read_scores(first))} ^ {*_scored(read_scores(second))})


def _scored(scores: Mapping[str, Any]) -> list[str]:
    """The tasks that have test lines."""
    return [name for name, cell in scores["languages"].items() if cell["lines"]]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compare`` in Markdown."""
    cells = [["test", "metric", "A", "B", "B - A", "95 % interval", "p bootstrap", "p randomisation"]]
    for row in rows:
        numbers = [f"{row['first']:.2f}", f"{row['second']:.2f}", f"{row['difference']:+.2f}"]
        low, high = row["interval"]
        cells.append([row["name"], row["metric"], *numbers, f"{low:+.2f} to {high:+.2f}"])
        cells[-1] += [f"{row[p]:.4f}" for p in ("p_bootstrap", "p_randomisation")]
    return aligned(cells, left=2)


def paired_tests(counts: Mapping[str, Counts], units: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Both tests of the average of the tasks' scores.

    Args:
        counts: of every task.
        units: the number of every line's sentence; lines of the same are drawn, or swapped, together.
        seed: of both tests.
    """
    # Sentences that no task of these has are not there to be drawn.
    present = np.unique(np.concatenate([units[name] for name in counts]))
    rows = {name: np.searchsorted(present, units[name]) for name in counts}

    def average(weights: dict[str, np.ndarray], which: str) -> np.ndarray:
        """Scores of weighted lines: {task: (trials, lines)} -> (trials,)."""
        return np.mean([c.score(_total(weights[name], getattr(c, which))) for name, c in counts.items()], axis=0)

    once = {name: np.ones((1, len(rows[name]))) for name in counts}
    first, second = float(average(once, "first")[0]), float(average(once, "second")[0])
    difference = second - first

    random = np.random.default_rng(seed)
    resampled = []
    for size in _chunks(RESAMPLES):
        times = random.multinomial(len(present), np.full(len(present), 1 / len(present)), size=size).astype(float)
        weights = {name: times[:, rows[name]] for name in counts}
        resampled.append(average(weights, "second") - average(weights, "first"))
    drawn = np.concatenate(resampled)

    as_large = 0
    for size in _chunks(TRIALS):
        swapped = random.integers(2, size=(size, len(present))).astype(float)
        values = []
        for name, c in counts.items():
            moved = _total(swapped[:, rows[name]], c.second - c.first)
            values.append(c.score(c.second.sum(0) - moved) - c.score(c.first.sum(0) + moved))
        as_large += int((np.abs(np.mean(values, axis=0)) >= abs(difference) - 1e-9).sum())
    low, high = np.percentile(drawn, [2.5, 97.5])
    shifted = np.abs(drawn - drawn.mean())
    return {
        "first": first,
        "second": second,
        "difference": difference,
        "interval": [float(low), float(high)],
        # The real data count as one trial more, so that no p is 0.
        "p_bootstrap": (int((shifted >= abs(difference) - 1e-9).sum()) + 1) / (RESAMPLES + 1),
        "p_randomisation": (as_large + 1) / (TRIALS + 1),
    }


def _total(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.tensordot(weights, counts.astype(float), axes=1)


def _chunks(total: int) -> Iterator[int]:
    return (min(_CHUNK, total - done) for done in range(0, total, _CHUNK))


def _units(tasks: Mapping[str, Lines]) -> dict[str, np.ndarray]:
    """Per task, the number of the sentence behind every line, on the side that the tasks share."""
    sides = [{name: getattr(lines, side) for name, lines in tasks.items()} for side in ("source", "reference")]
    shared = min(sides, key=lambda side: len({line for lines in side.values() for line in lines}))
    number = {line: i for i, line in enumerate(dict.fromkeys(line for lines in shared.values() for line in lines))}
    return {name: np.array([number[line] for line in lines]) for name, lines in shared.items()}


def _bleu_counts(lines: Lines, tokenizer: str) -> Counts:
    try:
        first, second = (bleu_counts(made, lines.reference, tokenizer) for made in (lines.first, lines.second))
    except (ImportError, KeyError, RuntimeError) as error:  # one that is not installed, or not known
        raise UserError(
            f"BLEU was computed with the tokenizer {tokenizer}, which cannot be used here: {error}"
        ) from None
    return Counts(first, second, bleu)


def _chrf_counts(lines: Lines, _tokenizer: str) -> Counts:
    first, second = (np.array(list(map(chrf_counts, made, lines.reference))) for made in (lines.first, lines.second))
    return Counts(first, second, chrf)


def _tokenizer(signature: str) -> str:
    """The tokenizer that a BLEU signature names."""
    return next(part.removeprefix("tok:") for part in signature.split("|") if part.startswith("tok:"))


def _read(first: Path, second: Path, task: str) -> Lines:
    """A task's test lines from the two runs' hyp/."""
    columns: dict[tuple[Path, str], list[str]] = {}
    for run in (first, second):
        for suffix in ("src", "ref", "txt"):
            path = run / "hyp" / f"test.{task}.{suffix}"
            if not path.is_file():
                raise UserError(f"{path} is missing; make it with: cats evaluate {run}")
            columns[run, suffix] = read_output(path)
        if len({len(columns[run, suffix]) for suffix in ("src", "ref", "txt")}) > 1:
            raise UserError(f"{run}/hyp: the files of {task} have different line counts; again: cats evaluate {run}")
    for suffix, what in (("src", "sources"), ("ref", "references")):
        if columns[first, suffix] != columns[second, suffix]:
            raise UserError(f"the {what} of {task} in {first} and {second} differ: they cannot be compared")
    return Lines(columns[first, "src"], columns[first, "ref"], columns[first, "txt"], columns[second, "txt"])
