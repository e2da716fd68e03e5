"""Which sentences stand in which update: tasks' shares, token budgets, length buckets.

Every batch is mixed: tasks get their share of each update, not updates of their own now and then, because CATS needs
the gradients of all tasks at one point. The whole sequence is a pure function of (lengths, options, seed), so
resuming needs nothing but the step number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOST_BUCKETS = 16


def shares(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Sampling probability of every task, q_n ~ size_n^(1/T) (Arivazhagan et al., 2019); T = inf is uniform."""
    largest = max(sizes.values())
    power = 0.0 if math.isinf(temperature) else 1.0 / temperature
    raw = {task: (size / largest) ** power for task, size in sizes.items()}
    total = sum(raw.values())
    return {task: value / total for task, value in raw.items()}


def unimax(tokens: Mapping[str, float], budget: float, epochs: float) -> dict[str, float]:
    """Every task's share of `budget` tokens: all alike, but none passed over more than `epochs` times.

    UniMax, Algorithm 1 of Chung et al. (ICLR 2023). tokens: {task: tokens in one pass over its text}.
    """
    left, given = budget, {}
    for i, task in enumerate(sorted(tokens, key=lambda task: tokens[task])):
        given[task] = min(left / (len(tokens) - i), epochs * tokens[task])
        left -= given[task]
    total = sum(given.values())
    return {task: given[task] / total for task in tokens}


def deal(chosen: Mapping[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    """The rows of every task dealt out to ``count`` batches, in turn; where there are few rows, some stay empty."""
    batches: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    first = 0  # tasks of few rows begin at different batches
    for task, rows in chosen.items():
        for i, batch in enumerate(batches):
            part = rows[(i - first) % count :: count]
            if len(part):
                batch[task] = part
        first += len(rows)
    return batches


@dataclass(frozen=True)
class Mixture:
    """How much of each task is drawn, update by update.

    temperature: see ``shares``. temperature_end: what it is at the last of `steps` updates, 1/T moving evenly from one
    to the other; 0: it stays. ratios: the tasks' shares of the sentences themselves, by their places, instead.
    unimax_epochs: above 0, ``unimax`` instead. pretrain: tasks that have the first `pretrain_steps` updates to
    themselves.
    """

    temperature: float
    temperature_end: float = 0.0
    ratios: Sequence[float] = ()
    unimax_epochs: float = 0.0
    steps: int = 1
    pretrain: Sequence[str] = ()
    pretrain_steps: int = 0

    def phase(self, step: int) -> float:
        """Updates of the same phase have the same shares."""
        if step < self.pretrain_steps:
            return -1.0
        return step / max(1, self.steps - 1) if self.temperature_end else 0.0

    def shares(self, phase: float, sizes: Mapping[str, int], lengths: Mapping[str, float], tokens: int) -> list[float]:
        """The probability that a sentence is of task n; they sum to 1.

        lengths: {task: mean target tokens of a sentence}. tokens: in an update.
        """
        if self.ratios:
            found = {task: value / sum(self.ratios) for task, value in zip(sizes, self.ratios, strict=True)}
        elif self.unimax_epochs:
            whole = {task: lengths[task] * size for task, size in sizes.items()}
            given = unimax(whole, float(tokens) * self.steps, self.unimax_epochs)
            total = sum(given[task] / lengths[task] for task in sizes)
            found = {task: given[task] / lengths[task] / total for task in sizes}
        else:
            temperature = self.temperature
            if self.temperature_end and phase > 0:
                inverse = (1 - phase) / temperature + phase / self.temperature_end
                temperature = 1 / inverse if inverse else math.inf
            found = shares(sizes, temperature)
        if phase < 0:
            found = {task: value if task in self.pretrain else 0.0 for task, value in found.items()}
            total = sum(found.values())
            found = {task: value / total for task, value in found.items()}
        return list(found.values())


class Sampler:
    """Batches as ``{task: indices of sentences}``.

    Args:
        lengths: {task: (pairs, 2) int array} source and target lengths in tokens.
        mixture: a sentence drawn is one of task n with the probability it gives.
        batch_tokens: target tokens per update over all tasks, met on average.
        seed: of everything random here.
        tasks_per_update: as many tasks stand in an update, each with the same budget, unless it is a rare or a giant
            one; 0: all of them.
        padded: batch_tokens are the cells of the padded batch instead, sentences times the longest side in the bucket.

    How it works. Each task's sentences are cut into equally many length buckets of equal size. An update takes one
    bucket for all tasks, so that rows padded to one width waste little; a bucket is taken as often as its share of
    the tokens, so every sentence of a task has the same chance. Within (task, bucket) sentences come in shuffled
    order, each once per round. A task owed 2.3 sentences gets two and a credit of 0.3: shares hold exactly over time,
    and a task owed 0.3 stands in every third such batch. Of many tasks, those of an update are drawn with a
    probability in proportion to their shares, and get the more the smaller it is.
    """

    def __init__(
        self,
        lengths: dict[str, np.ndarray],
        *,
        mixture: Mixture,
        batch_tokens: int,
        seed: int,
        tasks_per_update: int = 0,
        padded: bool = False,
    ) -> None:
        self.seed, self.mixture, self.batch_tokens, self.padded = seed, mixture, batch_tokens, padded
        self.tasks = list(lengths)
        self.sizes = {task: len(pairs) for task, pairs in lengths.items()}
        self.mean_lengths = {task: float(pairs[:, 1].mean()) for task, pairs in lengths.items()}
        self.drawn = tasks_per_update if 0 < tasks_per_update < len(self.tasks) else 0
        self.buckets = max(1, min(MOST_BUCKETS, max(self.sizes.values()) // 4))
        self.members: dict[tuple[str, int], np.ndarray] = {}
        self.means = np.zeros((len(lengths), self.buckets))  # target tokens per sentence
        self.widths = np.zeros(self.buckets)
        for n, (task, pairs) in enumerate(lengths.items()):
            order = np.argsort(pairs.sum(1), kind="stable").astype(np.int32)
            if len(order) < self.buckets:  # one sentence stands in several of them
                order = order[np.arange(self.buckets) * len(order) // self.buckets]
            for bucket, part in enumerate(np.array_split(order, self.buckets)):
                self.members[task, bucket] = part
                self.means[n, bucket] = pairs[part, 1].mean()
                self.widths[bucket] = max(self.widths[bucket], pairs[part].max())
        self.orders: dict[tuple[str, int], tuple[int, np.ndarray]] = {}  # the round in hand, shuffled
        self.phase = math.nan
        self._restart()

    def _restart(self) -> None:
        start = np.random.default_rng([self.seed, 0])
        # Credits start anywhere in [0, 1): else all rare tasks would come in the same updates.
        self.credit = start.random((len(self.tasks), self.buckets))
        self.taken = np.zeros(self.credit.shape, dtype=np.int64)
        self.step = 0

    def _enter(self, phase: float) -> None:
        """Shares, and what follows from them."""
        self.phase = phase
        found = self.mixture.shares(phase, self.sizes, self.mean_lengths, self.batch_tokens)
        self.shares = dict(zip(self.tasks, found, strict=True))
        tokens = np.zeros(self.buckets)  # per sentence
        for share, mean in zip(found, self.means, strict=True):
            tokens += share * mean
        cells = self.widths if self.padded else tokens  # what a sentence costs of the budget
        self.bucket_probability = cells / cells.sum()
        self.inclusion = _inclusion(np.array(found), self.drawn) if self.drawn else np.ones(len(found))
        present = np.divide(found, self.inclusion, out=np.zeros(len(found)), where=self.inclusion > 0)
        self.rates = present[:, None] * (self.batch_tokens / cells)  # sentences of each task in an update

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> dict[str, np.ndarray]:
        """Sentence indices per task of update ``step`` (from 0); tasks without a sentence in it are left out.

        Of several ranks each gets its part of the same update, see ``deal``. Asking for the next step is the cheap
        way; an earlier one replays from the start.
        """
        if step < self.step:
            self._restart()
        while self.step < step:
            self._next(draw=False)
        chosen = self._next(draw=True)
        return chosen if ranks == 1 else deal(chosen, ranks)[rank]

    def largest(self) -> dict[str, np.ndarray]:
        """The longest sentences of the bucket that needs most cells, as many as an update can have of every task."""
        if math.isnan(self.phase):
            self._enter(self.mixture.phase(self.step))
        bucket = int(np.argmax(self.rates.sum(0) * self.widths))
        counts = np.ceil(self.rates[:, bucket]).astype(int)
        longest_first = {task: self.members[task, bucket][::-1] for task in self.tasks}
        return {task: np.resize(longest_first[task], n) for task, n in zip(self.tasks, counts, strict=True) if n}

    def _next(self, draw: bool) -> dict[str, np.ndarray]:
        phase = self.mixture.phase(self.step)
        if phase != self.phase:
            self._enter(phase)
        random = np.random.default_rng([self.seed, 1, self.step])
        bucket = int(random.choice(self.buckets, p=self.bucket_probability))
        present = _systematic(self.inclusion, random) if self.drawn else slice(None)
        counts = np.zeros(len(self.tasks), dtype=np.int64)
        while not counts.any():  # a budget below one sentence per update: go on until somebody's credit reaches one
            self.credit[present, bucket] += self.rates[present, bucket]
            counts[present] = self.credit[present, bucket].astype(np.int64)
        self.credit[:, bucket] -= counts
        chosen = {}
        if draw:
            chosen = {self.tasks[n]: self._take(int(n), bucket, int(counts[n])) for n in counts.nonzero()[0]}
        self.taken[:, bucket] += counts
        self.step += 1
        return chosen

    def _take(self, task: int, bucket: int, count: int) -> np.ndarray:
        """The next ``count`` sentences of (task, bucket), running over as many rounds as needed."""
        key = self.tasks[task], bucket
        size = len(self.members[key])
        first = int(self.taken[task, bucket])
        parts = []
        for round_number in range(first // size, (first + count - 1) // size + 1):
            if self.orders.get(key, (-1,))[0] != round_number:
                random = np.random.default_rng([self.seed, 2, task, bucket, round_number])
                self.orders[key] = round_number, random.permutation(self.members[key])
            base = round_number * size
            parts.append(self.orders[key][1][max(0, first - base) : first + count - base])
        return np.concatenate(parts)


def _inclusion(shares: np.ndarray, count: int) -> np.ndarray:
    """The probabilities, ~ shares but at most 1, with which tasks are drawn so that there are ``count`` of them."""
    found = np.zeros_like(shares)
    sure = np.zeros(len(shares), dtype=bool)
    count = min(count, int((shares > 0).sum()))
    while True:
        rest = shares[~sure].sum()
        found[~sure] = shares[~sure] * (count - sure.sum()) / rest if rest else 0.0
        found[sure] = 1.0
        more = found > 1
        if not more.any():
            return found
        sure |= more


def _systematic(inclusion: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Indices drawn without replacement, index n with probability inclusion[n] (systematic sampling, shuffled)."""
    order = random.permutation(len(inclusion))
    marks = np.cumsum(inclusion[order])
    count = round(float(marks[-1]))
    places = np.searchsorted(marks, random.random() + np.arange(count), side="right")
    return np.unique(order[np.minimum(places, len(order) - 1)])
