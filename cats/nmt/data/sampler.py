"""Which sentences are in which update: the probabilities of the tasks, token budgets and length buckets.

Every batch is mixed: each update has sentences of all tasks, in proportion to their probabilities, because CATS needs
the gradients of all tasks at one point. The sequence of batches depends on (lengths, options, seed) only, so a
resumed run needs only the step number.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

MOST_BUCKETS = 16


def temperature_probabilities(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """The sampling probability of every task, q_n ~ size_n^(1/T) (Arivazhagan et al., 2019); T = inf is uniform."""
    largest = max(sizes.values())
    power = 0.0 if math.isinf(temperature) else 1.0 / temperature
    raw = {task: (size / largest) ** power for task, size in sizes.items()}
    total = sum(raw.values())
    return {task: value / total for task, value in raw.items()}


def unimax(
    tokens: Mapping[str, float], budget: float, epochs: float, costs: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Every task's share of the tokens: as uniform as possible with no task repeated too often.

    UniMax, Algorithm 1 of Chung et al. (ICLR 2023).

    Args:
        tokens: {task: tokens in one pass over its text}.
        budget: of the whole training.
        epochs: the maximum number of passes over the text of any task.
        costs: {task: the part of the budget that a token uses, with its padding}. None: 1, so that the budget is in
            tokens.
    """
    costs = costs or dict.fromkeys(tokens, 1.0)
    left, given = budget, {}
    order = sorted(tokens, key=lambda task: tokens[task])
    rest = list(accumulate(costs[task] for task in reversed(order)))  # of a token of each of the tasks that are left
    for task in order:
        given[task] = min(left / rest.pop(), epochs * tokens[task])
        left -= given[task] * costs[task]
    total = sum(given.values())
    return {task: given[task] / total for task in tokens}


def split_batch(indices: Mapping[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    """Splits {task: indices of its sentences} into `count` batches of nearly equal size.

    Each task's sentences are distributed round-robin. If there are few sentences, some batches are empty.
    """
    batches: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    first = 0  # the batch that gets a task's first sentence: it moves on, so that small tasks are spread
    for task, chosen in indices.items():
        for i, batch in enumerate(batches):
            part = chosen[(i - first) % count :: count]
            if len(part):
                batch[task] = part
        first += len(chosen)
    return batches


@dataclass(frozen=True)
class Mixture:
    """The sampling probabilities of the tasks, update by update.

    temperature: see ``temperature_probabilities``.
    temperature_end: the temperature at the last of `steps` updates; 1/T is interpolated linearly. 0: it is constant.
    ratios: if given, the probabilities are proportional to these numbers instead, one per task in the order of
        their names.
    unimax_epochs: if above 0, the tasks' shares of the tokens are those of ``unimax`` instead.
    first_temperature: the temperature in the first `pretrain_steps` updates; 0: the same as later.
    pretrain: the tasks that are trained alone in the first `pretrain_steps` updates; empty: all.
    finetune: the tasks that are trained alone after them; empty: all.
    """

    temperature: float
    temperature_end: float = 0.0
    ratios: Sequence[float] = ()
    unimax_epochs: float = 0.0
    steps: int = 1
    first_temperature: float = 0.0
    pretrain: Sequence[str] = ()
    pretrain_steps: int = 0
    finetune: Sequence[str] = ()

    def phase(self, step: int) -> float:
        """A number that the probabilities depend on. Updates with the same phase have the same probabilities.

        -1 in the first `pretrain_steps` updates, if they differ. Later, the fraction of the training that is done if
        the temperature changes, else 0.
        """
        if step < self.pretrain_steps and (self.pretrain or self.finetune or self.first_temperature):
            return -1.0
        return step / max(1, self.steps - 1) if self.temperature_end else 0.0

    def probabilities(
        self,
        phase: float,
        sizes: Mapping[str, int],
        lengths: Mapping[str, float],
        tokens: int,
        width: float | None = None,
    ) -> list[float]:
        """For each task, the probability that a sentence belongs to it. They sum to 1.

        Args:
            phase: see ``phase``.
            sizes: {task: pairs}.
            lengths: {task: mean target tokens of a sentence}.
            tokens: the budget of an update.
            width: the mean part of the budget that a sentence uses if padding counts too. None: its target tokens.
        """
        if phase < 0 and self.first_temperature:
            found = temperature_probabilities(sizes, self.first_temperature)
        elif self.ratios:
            given = dict(zip(sorted(sizes), self.ratios, strict=True))
            found = {task: given[task] / sum(self.ratios) for task in sizes}
        elif self.unimax_epochs:
            whole = {task: lengths[task] * size for task, size in sizes.items()}
            costs = None if width is None else {task: width / lengths[task] for task in sizes}
            budgets = unimax(whole, float(tokens) * self.steps, self.unimax_epochs, costs)
            total = sum(budgets[task] / lengths[task] for task in sizes)
            found = {task: budgets[task] / lengths[task] / total for task in sizes}
        else:
            temperature = self.temperature
            if self.temperature_end and phase > 0:
                inverse = (1 - phase) / temperature + phase / self.temperature_end
                temperature = 1 / inverse if inverse else math.inf
            found = temperature_probabilities(sizes, temperature)
        if alone := set(self.pretrain if phase < 0 else self.finetune):
            found = {task: value if task in alone else 0.0 for task, value in found.items()}
            total = sum(found.values())
            found = {task: value / total for task, value in found.items()}
        return list(found.values())


class ChangingMixture:
    """A mixture whose probabilities an adaptive method changes during the training.

    All changes so far are kept, so that the probabilities, and with them the batches, stay a function of the step.

    Args:
        before: gives the probabilities before the first change.

    Attributes:
        first: the first update of each change, ascending. values: the probabilities from there on.
    """

    def __init__(self, before: Mixture) -> None:
        self.before = before
        self.first: list[int] = []
        self.values: list[list[float]] = []

    def change(self, first: int, probabilities: Sequence[float]) -> None:
        """From update `first` on, tasks are drawn with these probabilities. A change at the same update is replaced."""
        if self.first and self.first[-1] >= first:
            assert self.first[-1] == first, "changes are made in the order of the updates"
            self.first.pop(), self.values.pop()
        self.first.append(first)
        self.values.append(list(probabilities))

    def phase(self, step: int) -> float:
        """See ``Mixture.phase``; 2 and more after the first change."""
        count = bisect.bisect_right(self.first, step)
        return 1.0 + count if count else self.before.phase(step)

    def probabilities(
        self,
        phase: float,
        sizes: Mapping[str, int],
        lengths: Mapping[str, float],
        tokens: int,
        width: float | None = None,
    ) -> list[float]:
        """See ``Mixture.probabilities``."""
        if phase > 1:
            return self.values[int(phase) - 2]
        return self.before.probabilities(phase, sizes, lengths, tokens, width)


class Sampler:
    """Draws batches, each given as {task: indices of its sentences}.

    Args:
        lengths: {task: (pairs, 2) int array}, source and target lengths in tokens.
        mixture: gives the probability that a sentence belongs to a task.
        batch_tokens: the average number of target tokens per update, over all tasks.
        seed: the seed of all random choices.
        tasks_per_update: the number of tasks in an update; 0: all of them. Each gets about the same budget, except
            for very rare and very frequent tasks.
        padded: batch_tokens counts padding too: the number of sentences times the longest side in the bucket.

    How it works. Each task's sentences are sorted by length and cut into buckets of equal size, equally many for every
    task. An update takes one bucket for all tasks, so there is little padding. A bucket is drawn as often as its share
    of the tokens, so all buckets of a task give equally many sentences, and its sentences have nearly the same
    probability: one bucket may have one sentence more than another, or of fewer sentences than buckets, some are in one
    bucket more. With 16 buckets two probabilities differ by up to a factor of 2 below 32 pairs, 1.5 below 48 and 1.1
    from 160 on. Within (task, bucket) sentences come in shuffled order, each once per round. A task with an expected
    2.3 sentences gets two and keeps a credit of 0.3. So over time the shares of the tasks equal their probabilities: a
    task with an expected 0.3 sentences per batch of the bucket appears in about three of ten such batches. If an update
    has only some of the tasks, they are drawn in proportion to their probabilities; a task that is drawn less often
    gets more sentences each time.
    """

    def __init__(
        self,
        lengths: dict[str, np.ndarray],
        *,
        mixture: Mixture | ChangingMixture,
        batch_tokens: int,
        seed: int,
        tasks_per_update: int = 0,
        padded: bool = False,
    ) -> None:
        self.seed, self.mixture, self.batch_tokens, self.padded = seed, mixture, batch_tokens, padded
        self.tasks = list(lengths)
        self.sizes = {task: len(pairs) for task, pairs in lengths.items()}
        self.mean_lengths = {task: float(pairs[:, 1].mean()) for task, pairs in lengths.items()}
        self.tasks_per_update = tasks_per_update if 0 < tasks_per_update < len(self.tasks) else 0
        self.buckets = max(1, min(MOST_BUCKETS, max(self.sizes.values()) // 4))
        self.members: dict[tuple[str, int], np.ndarray] = {}  # the sentences of (task, bucket)
        self.means = np.zeros((len(lengths), self.buckets))  # target tokens per sentence
        self.widths = np.zeros(self.buckets)  # tokens of the longest side
        for n, (task, pairs) in enumerate(lengths.items()):
            order = np.argsort(pairs.sum(1), kind="stable").astype(np.int32)
            if len(order) < self.buckets:  # some sentences are in several buckets
                order = order[np.arange(self.buckets) * len(order) // self.buckets]
            for bucket, part in enumerate(np.array_split(order, self.buckets)):
                self.members[task, bucket] = part
                self.means[n, bucket] = pairs[part, 1].mean()
                self.widths[bucket] = max(self.widths[bucket], pairs[part].max())
        self.orders: dict[tuple[str, int], tuple[int, np.ndarray]] = {}  # the current round and its shuffled sentences
        self.phase = math.nan
        self._restart()

    def _restart(self) -> None:
        random = np.random.default_rng([self.seed, 0])
        # Credits start at random in [0, 1). Otherwise all rare tasks would be in the same updates.
        self.credit = random.random((len(self.tasks), self.buckets))
        self.taken = np.zeros(self.credit.shape, dtype=np.int64)  # sentences drawn so far
        self.step = 0

    def probabilities(self, phase: float) -> list[float]:
        """For each task, the probability that a sentence belongs to it."""
        # A bucket is drawn as often as its width, for as many sentences fewer, so a sentence uses the mean width.
        width = float(self.widths.mean()) if self.padded else None
        return self.mixture.probabilities(phase, self.sizes, self.mean_lengths, self.batch_tokens, width)

    def _set_phase(self, phase: float) -> None:
        """Computes the probabilities of a phase and all that depends on them."""
        self.phase = phase
        found = self.probabilities(phase)
        tokens = np.zeros(self.buckets)  # per sentence
        for probability, mean in zip(found, self.means, strict=True):
            tokens += probability * mean
        cost = self.widths if self.padded else tokens  # the part of the budget that a sentence uses
        self.bucket_probability = cost / cost.sum()
        self.inclusion = (
            _inclusion_probabilities(np.array(found), self.tasks_per_update)
            if self.tasks_per_update
            else np.ones(len(found))
        )
        present = np.divide(found, self.inclusion, out=np.zeros(len(found)), where=self.inclusion > 0)
        self.rates = present[:, None] * (self.batch_tokens / cost)  # sentences of each task in an update

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """{task: indices of its sentences} of update `step`, from 0; tasks without a sentence are left out.

        Asking for the next step is cheap. Asking for an earlier one replays the sequence from the start.
        """
        if step < self.step:
            self._restart()
        while self.step < step:
            self._next(draw=False)
        return self._next(draw=True)

    def token_shares(self, step: int) -> dict[str, float]:
        """{task: its expected share of the target tokens} of an update around update `step`."""
        found = self.probabilities(self.mixture.phase(step))
        tokens = {task: p * self.mean_lengths[task] for task, p in zip(self.tasks, found, strict=True)}
        total = sum(tokens.values())
        return {task: number / total for task, number in tokens.items()}

    def largest_batch(self) -> dict[str, np.ndarray]:
        """The largest possible batch: the longest sentences of the largest bucket, as many per task as can occur."""
        if math.isnan(self.phase):
            self._set_phase(self.mixture.phase(self.step))
        bucket = int(np.argmax(self.rates.sum(0) * self.widths))
        counts = np.ceil(self.rates[:, bucket]).astype(int)
        longest_first = {task: self.members[task, bucket][::-1] for task in self.tasks}
        return {task: np.resize(longest_first[task], n) for task, n in zip(self.tasks, counts, strict=True) if n}

    def _next(self, draw: bool) -> dict[str, np.ndarray]:
        phase = self.mixture.phase(self.step)
        if phase != self.phase:
            self._set_phase(phase)
        random = np.random.default_rng([self.seed, 1, self.step])
        bucket = int(random.choice(self.buckets, p=self.bucket_probability))
        present = _systematic_sample(self.inclusion, random) if self.tasks_per_update else slice(None)
        counts = np.zeros(len(self.tasks), dtype=np.int64)
        while not counts.any():  # repeats only if the budget is less than one sentence
            self.credit[present, bucket] += self.rates[present, bucket]
            counts[present] = self.credit[present, bucket].astype(np.int64)
        self.credit[:, bucket] -= counts
        indices = {}
        if draw:
            indices = {self.tasks[n]: self._take(int(n), bucket, int(counts[n])) for n in counts.nonzero()[0]}
        self.taken[:, bucket] += counts
        self.step += 1
        return indices

    def _take(self, task: int, bucket: int, count: int) -> np.ndarray:
        """The next `count` sentences of (task, bucket), from as many rounds as needed."""
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


def _inclusion_probabilities(probabilities: np.ndarray, count: int) -> np.ndarray:
    """For each task, the probability that it is in an update, if `count` tasks are drawn without replacement.

    They are proportional to `probabilities`, but at most 1, and sum to `count`.
    """
    found = np.zeros_like(probabilities)
    certain = np.zeros(len(probabilities), dtype=bool)
    count = min(count, int((probabilities > 0).sum()))
    while True:
        rest = probabilities[~certain].sum()
        found[~certain] = probabilities[~certain] * (count - certain.sum()) / rest if rest else 0.0
        found[certain] = 1.0
        above = found > 1
        if not above.any():
            return found
        certain |= above


def _systematic_sample(inclusion: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Indices drawn without replacement, index n with probability inclusion[n] (systematic sampling, shuffled)."""
    order = random.permutation(len(inclusion))
    marks = np.cumsum(inclusion[order])
    count = round(float(marks[-1]))
    places = np.searchsorted(marks, random.random() + np.arange(count), side="right")
    return np.unique(order[np.minimum(places, len(order) - 1)])
