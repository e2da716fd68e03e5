"""Which sentences stand in which update: temperature sampling, token budgets, length buckets.

Every batch is mixed: a task gets its share of each update, not an update of its own now and then, because CATS needs
the gradients of all tasks at one point. The whole sequence is a pure function of (lengths, options, seed), so
resuming needs nothing but the step number.
"""

from __future__ import annotations

import math

import numpy as np

MOST_BUCKETS = 16


def shares(sizes: dict[str, int], temperature: float) -> dict[str, float]:
    """Sampling probability of every task, q_n ~ size_n^(1/T) (Arivazhagan et al., 2019); T = inf is uniform."""
    largest = max(sizes.values())
    power = 0.0 if math.isinf(temperature) else 1.0 / temperature
    raw = {task: (size / largest) ** power for task, size in sizes.items()}
    total = sum(raw.values())
    return {task: value / total for task, value in raw.items()}


class Sampler:
    """Batches as ``{task: indices of sentences}``.

    Args:
        lengths: {task: (pairs, 2) int array} source and target lengths in tokens.
        temperature: see ``shares``; a sentence drawn is one of task n with probability q_n.
        batch_tokens: target tokens per update over all tasks, met on average.
        seed: of everything random here.

    How it works. Each task's sentences are cut into equally many length buckets of equal size. An update takes one
    bucket for all tasks, so that rows padded to one width waste little; a bucket is taken as often as its share of
    the tokens, so every sentence of a task has the same chance. Within (task, bucket) sentences come in shuffled
    order, each once per round. A task owed 2.3 sentences gets two and a credit of 0.3: shares hold exactly over time,
    and a task owed 0.3 stands in every third such batch.
    """

    def __init__(self, lengths: dict[str, np.ndarray], *, temperature: float, batch_tokens: int, seed: int) -> None:
        self.seed = seed
        self.tasks = list(lengths)
        sizes = {task: len(pairs) for task, pairs in lengths.items()}
        self.shares = shares(sizes, temperature)
        self.buckets = max(1, min(MOST_BUCKETS, min(sizes.values()) // 4))
        self.members: dict[tuple[str, int], np.ndarray] = {}
        tokens = np.zeros(self.buckets)
        for task, pairs in lengths.items():
            order = np.argsort(pairs.sum(1), kind="stable")
            for bucket, part in enumerate(np.array_split(order, self.buckets)):
                self.members[task, bucket] = part
                tokens[bucket] += self.shares[task] * pairs[part, 1].mean()
        self.sentences = batch_tokens / tokens  # sentences per update, by bucket
        self.bucket_probability = tokens / tokens.sum()
        self._restart()

    def _restart(self) -> None:
        start = np.random.default_rng([self.seed, 0])
        # Credits start anywhere in [0, 1): else all rare tasks would come in the same updates.
        self.credit = {key: float(start.random()) for key in self.members}
        self.taken = dict.fromkeys(self.members, 0)
        self.step = 0

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Sentence indices per task of update ``step`` (from 0); tasks without a sentence in it are left out.

        Asking for the next step is the cheap way; an earlier one replays from the start.
        """
        if step < self.step:
            self._restart()
        while self.step < step:
            self._next(draw=False)
        return self._next(draw=True)

    def _next(self, draw: bool) -> dict[str, np.ndarray]:
        random = np.random.default_rng([self.seed, 1, self.step])
        bucket = int(random.choice(self.buckets, p=self.bucket_probability))
        chosen: dict[str, np.ndarray] = {}
        while not chosen:  # a budget below one sentence per update: go on until somebody's credit reaches one
            for task in self.tasks:
                key = task, bucket
                self.credit[key] += self.shares[task] * self.sentences[bucket]
                count = int(self.credit[key])
                if count:
                    self.credit[key] -= count
                    chosen[task] = self._take(key, count) if draw else np.empty(0, dtype=np.int64)
                    self.taken[key] += count
        self.step += 1
        return chosen

    def _take(self, key: tuple[str, int], count: int) -> np.ndarray:
        """The next ``count`` sentences of (task, bucket), running over as many rounds as needed."""
        members = self.members[key]
        first = self.taken[key]
        parts = []
        for round_number in range(first // len(members), (first + count - 1) // len(members) + 1):
            stream = [self.seed, 2, self.tasks.index(key[0]), key[1], round_number]
            order = np.random.default_rng(stream).permutation(members)
            base = round_number * len(members)
            parts.append(order[max(0, first - base) : first + count - base])
        return np.concatenate(parts)
