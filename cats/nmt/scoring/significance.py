"""`cats significance`: is run B better than run A, or would other test lines have given another result?

Two tests of the difference between two systems on the same lines, both two-sided:

- Paired bootstrap resampling (Koehn, 2004): lines are drawn with replacement. The resampled differences are shifted to
  mean 0, and p is the share of them that is at least as large as the observed difference.
- Approximate randomisation (Riezler & Maxwell, 2005): the two translations of each line are swapped or not, at random.
  p is the share of trials with a difference at least as large as the observed one.

For the average of a group, sentences of the shared language are resampled, in all tasks at once. Translations of the
same sentence into several languages are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cats.nmt.errors import UserError, command
from cats.nmt.scoring import hypotheses
from cats.nmt.scoring.bootstrap import bleu, bleu_counts, chrf, chrf_counts
from cats.nmt.scoring.scores import TITLES, Scores, damaged, read_scores

RESAMPLES = 1000  # resamples of the bootstrap
TRIALS = 10_000  # trials of the randomisation test
_CHUNK = 250  # resamples or trials computed at a time, to limit the memory


class Lines(NamedTuple):
    """The test lines of one task: source, reference, and the translations of both runs."""

    source: list[str]
    reference: list[str]
    first: list[str]
    second: list[str]


class Counts(NamedTuple):
    """Counts that a score is computed from, (lines, ..) for each run, and the score as a function of summed counts."""

    first: np.ndarray
    second: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class TestResult:
    """Both tests of one difference.

    Attributes:
        first: score of run A.
        second: score of run B.
        difference: second - first.
        interval: 95 % interval of the difference, by bootstrap.
        p_bootstrap: p-value of the bootstrap.
        p_randomisation: p-value of the randomisation.
    """

    __test__ = False  # tells pytest that this is not a class of tests

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_bootstrap: float
    p_randomisation: float


@dataclass(frozen=True)
class Row:
    """The tests of one task, or of a group's average, by one metric (BLEU or chrF)."""

    name: str
    metric: str
    result: TestResult

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "metric": self.metric, **asdict(self.result)}


def compare(first: Path, second: Path, seed: int = 1) -> list[Row]:
    """Tests two evaluated runs on all test lines: a row for each task and group that both have, and each metric.

    Runs with different tasks, such as a bilingual and a multilingual one, are compared on the tasks that they share.

    Args:
        first: directory of run A.
        second: directory of run B.
        seed: seed of both tests.

    Raises:
        UserError: a run is not evaluated, a file of translations is missing, or the runs have no task in common or
            different references.
    """
    scores = read_scores(first)
    theirs = read_scores(second).scored_tasks
    names = [name for name in scores.scored_tasks if name in theirs]
    if not names:
        raise UserError(f"{first} and {second} have no task in common: they cannot be compared")
    tasks = {name: _read(first, second, name) for name in names}
    tokenizers = {name: _bleu_tokenizer(first, scores, name) for name in names}
    sentences = _sentences(tasks)
    groups = {TITLES[group]: [n for n in members if n in tasks] for group, members in scores.members.items()}
    rows = []
    for metric, count in (("BLEU", _bleu_counts), ("chrF", _chrf_counts)):
        counts = {name: count(lines, tokenizers[name]) for name, lines in tasks.items()}
        for name in names:
            own = {name: np.arange(len(sentences[name]))}
            rows.append(Row(name, metric, paired_tests({name: counts[name]}, own, seed)))
        for title, members in groups.items():
            if members:
                rows.append(Row(title, metric, paired_tests({name: counts[name] for name in members}, sentences, seed)))
    return rows


def unshared(first: Path, second: Path) -> list[str]:
    """The tasks with test lines that only one of the runs has. `compare` leaves them out."""
    return sorted({*read_scores(first).scored_tasks} ^ {*read_scores(second).scored_tasks})


def untrained(first: Path, second: Path) -> list[str]:
    """For each run whose model is not trained, a sentence that says why. Tests of such runs mean nothing."""
    found = []
    for letter, run, other in (("A", first, second), ("B", second, first)):
        scores, theirs = read_scores(run), read_scores(other).scored_tasks
        names = [name for name in scores.scored_tasks if name in theirs]
        empty = [name for name in names if not any(map(str.strip, hypotheses.read(run, scores, name, "txt")))]
        if empty:
            found.append(f"{letter} is not trained: all its translations of {', '.join(empty)} are empty.")
        elif scores.is_below_baseline:
            found.append(
                f"{letter} is not trained: its chrF is below that of the nearest-neighbour baseline in every group."
            )
    return found


def paired_tests(counts: Mapping[str, Counts], sentences: Mapping[str, np.ndarray], seed: int) -> TestResult:
    """Both tests of the average of the tasks' scores.

    Args:
        counts: the counts of each task.
        sentences: for each task, the number of the sentence of each line, (lines,) integers. Lines of the same sentence
            are drawn, or swapped, together.
        seed: seed of both tests.
    """
    # `sentences` may have more tasks than `counts`. Only sentences of the tasks in `counts` are drawn.
    present = np.unique(np.concatenate([sentences[name] for name in counts]))
    rows = {name: np.searchsorted(present, sentences[name]) for name in counts}

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
    return TestResult(
        first=first,
        second=second,
        difference=difference,
        interval=(float(low), float(high)),
        # The observed data count as one more trial, so that no p-value is 0.
        p_bootstrap=(int((shifted >= abs(difference) - 1e-9).sum()) + 1) / (RESAMPLES + 1),
        p_randomisation=(as_large + 1) / (TRIALS + 1),
    )


def _total(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.tensordot(weights, counts.astype(float), axes=1)


def _chunks(total: int) -> Iterator[int]:
    return (min(_CHUNK, total - done) for done in range(0, total, _CHUNK))


def _sentences(tasks: Mapping[str, Lines]) -> dict[str, np.ndarray]:
    """For each task, the number of each line's sentence, on the side (source or reference) that the tasks share."""
    sides = [{name: getattr(lines, side) for name, lines in tasks.items()} for side in ("source", "reference")]
    # The shared side is the one with fewer different sentences.
    shared = min(sides, key=lambda side: len({line for lines in side.values() for line in lines}))
    number = {line: i for i, line in enumerate(dict.fromkeys(line for lines in shared.values() for line in lines))}
    return {name: np.array([number[line] for line in lines]) for name, lines in shared.items()}


def line_bleu_counts(translations: Sequence[str], references: Sequence[str], tokenizer: str) -> np.ndarray:
    """The BLEU counts of lines, see `bleu_counts`.

    Raises:
        UserError: the tokenizer cannot be used here.
    """
    try:
        return bleu_counts(translations, references, tokenizer)
    except (ImportError, KeyError, RuntimeError) as error:  # the tokenizer is not installed, or unknown to sacreBLEU
        raise UserError(
            f"BLEU was computed with the tokenizer {tokenizer}, which cannot be used here: {error}"
        ) from None


def _bleu_counts(lines: Lines, tokenizer: str) -> Counts:
    first, second = (line_bleu_counts(found, lines.reference, tokenizer) for found in (lines.first, lines.second))
    return Counts(first, second, bleu)


def _chrf_counts(lines: Lines, _tokenizer: str) -> Counts:
    first, second = (np.array(list(map(chrf_counts, found, lines.reference))) for found in (lines.first, lines.second))
    return Counts(first, second, chrf)


def _bleu_tokenizer(run: Path, scores: Scores, task: str) -> str:
    if tokenizer := scores.bleu_tokenizer(task):
        return tokenizer
    raise damaged(run)


def _read(first: Path, second: Path, task: str) -> Lines:
    """A task's test lines from the hyp/ folders of both runs."""
    columns: dict[tuple[Path, str], list[str]] = {}
    for run in (first, second):
        scores = read_scores(run)
        for suffix in ("src", "ref", "txt"):
            columns[run, suffix] = hypotheses.read(run, scores, task, suffix)
        if len({len(columns[run, suffix]) for suffix in ("src", "ref", "txt")}) > 1:
            raise UserError(
                f"{run}/hyp: the files of {task} have different line counts; make them again with: "
                f"{command('evaluate', run)}"
            )
    for suffix, what in (("src", "sources"), ("ref", "references")):
        if columns[first, suffix] != columns[second, suffix]:
            raise UserError(f"the {what} of {task} in {first} and {second} differ: they cannot be compared")
    return Lines(columns[first, "src"], columns[first, "ref"], columns[first, "txt"], columns[second, "txt"])
