"""Corpus BLEU and chrF computed from counts, and their hierarchical bootstrap.

The bootstrap shows whether a difference between methods holds with other seeds and other test text. Each resample draws
clusters of test lines with replacement, and other weights for the seeds. A cluster is a template, or a sentence that
several languages share. All methods get the same draws, so that their differences are paired (Koehn, 2004; clusters as
in Field & Welsh, 2007).

Seeds are few. Drawing 3 to 5 of them with replacement gives intervals that are too narrow: the variance is (n-1)/n of
the right one, and the tails are too light. So the mean over the seeds gets a random deviation instead, which is a
weighted sum of the seeds' deviations from their mean (a multiplier bootstrap; Wu, 1986). The weights are normal and
divided by the root of a chi-square variable over its degrees of freedom, so that for any difference between methods the
deviation is exactly Student's t with n-1 degrees of freedom times the standard error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

CHAR_ORDER = 6  # as in sacreBLEU's default chrF: character 1- to 6-grams without whitespace, beta 2
BETA = 2
_CHUNK = 100  # resamples that are drawn at a time, in 8 bytes for each cluster; 2 are kept


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))


def chrf_counts(hypothesis: str, reference: str) -> np.ndarray:
    """Counts that chrF is computed from (Popović, 2015).

    Returns:
        (CHAR_ORDER, 3) int64: for each n, the number of n-grams in the hypothesis, in the reference, and in both.
    """
    hypothesis, reference = "".join(hypothesis.split()), "".join(reference.split())
    counts = np.zeros((CHAR_ORDER, 3), dtype=np.int64)
    for order in range(1, CHAR_ORDER + 1):
        ours, theirs = _ngrams(hypothesis, order), _ngrams(reference, order)
        if theirs:  # as in sacreBLEU, n-grams longer than the reference are ignored
            counts[order - 1] = ours.total(), theirs.total(), (ours & theirs).total()
    return counts


def chrf(counts: np.ndarray) -> np.ndarray:
    """Corpus chrF, 0 to 100, from summed counts (.., CHAR_ORDER, 3)."""
    hypothesis, reference, match = np.moveaxis(counts.astype(np.float64), -1, 0)
    effective = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(effective.sum(-1), 1)
    precision = (np.divide(match, hypothesis, out=np.zeros_like(match), where=effective)).sum(-1) / orders
    recall = (np.divide(match, reference, out=np.zeros_like(match), where=effective)).sum(-1) / orders
    below = BETA**2 * precision + recall
    return 100 * np.divide((1 + BETA**2) * precision * recall, below, out=np.zeros_like(below), where=below > 0)


def bleu_counts(hypotheses: Sequence[str], references: Sequence[str], tokenizer: str) -> np.ndarray:
    """Counts that BLEU is computed from (Papineni et al., 2002).

    Args:
        tokenizer: name of a tokenizer of sacreBLEU.

    Returns:
        (lines, 10) int64: length of the hypothesis, length of the reference, number of 1- to 4-grams in both, number of
        1- to 4-grams in the hypothesis.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize=tokenizer, force=True)
    pairs = zip(hypotheses, references, strict=True)
    scores = [bleu.corpus_score([hypothesis], [[reference]]) for hypothesis, reference in pairs]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=np.int64).reshape(-1, 10)


def bleu(counts: np.ndarray) -> np.ndarray:
    """Corpus BLEU, 0 to 100, from summed counts (.., 10), with sacreBLEU's default smoothing (exp)."""
    counts = counts.astype(np.float64)
    ours, theirs, match, total = counts[..., 0], counts[..., 1], counts[..., 2:6], counts[..., 6:]
    halved = np.cumsum(match == 0, axis=-1)  # the k-th n-gram order without a match counts as 1 / 2^k matches
    precision = np.divide(np.where(match > 0, match, 0.5**halved), total, out=np.zeros_like(match), where=total > 0)
    possible = (match > 0).any(-1) & (total > 0).all(-1)
    geometric = np.exp(np.log(np.where(np.expand_dims(possible, -1), precision, 1.0)).mean(-1))
    return np.where(possible, 100 * geometric * np.exp(np.minimum(0, 1 - theirs / np.maximum(ours, 1))), 0.0)


def cluster_counts(
    hypotheses: Sequence[str], references: Sequence[str], clusters: Sequence[str], index: Mapping[str, int]
) -> np.ndarray:
    """The chrF counts of lines, summed over each cluster.

    Args:
        clusters: the cluster of each line.
        index: the number of each cluster.

    Returns:
        (clusters, CHAR_ORDER, 3) int64.
    """
    lines = [*map(chrf_counts, hypotheses, references)]
    return cluster_sums(np.array(lines, dtype=np.int64).reshape(-1, CHAR_ORDER, 3), clusters, index)


def cluster_sums(counts: np.ndarray, clusters: Sequence[str], index: Mapping[str, int]) -> np.ndarray:
    """Counts of lines (lines, ..), summed over each cluster: (clusters, ..). clusters, index: see `cluster_counts`."""
    total = np.zeros((len(index), *counts.shape[1:]), dtype=np.int64)
    np.add.at(total, [index[cluster] for cluster in clusters], counts)
    return total


def resampled_scores(
    runs: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
    resamples: int,
    seed: int = 0,
    score: Callable[[np.ndarray], np.ndarray] = chrf,
    rows: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Resamples the score of each method and language, averaged over the seeds.

    A method with a single seed has no spread over seeds: its values vary by the test lines only.

    Args:
        runs: {method: {seed: {language: counts (clusters of the language, ..)}}}. Methods may have different seeds.
        resamples: number of resamples.
        seed: of the draws.
        score: `chrf` or `bleu`, of summed counts.
        rows: {language: the number of each of its clusters among all clusters}. None: all languages have all clusters.

    Returns:
        {method: {language: (resamples,) float64}}. A value may lie outside of 0 to 100.
    """
    random = np.random.default_rng(seed)
    languages = next(iter(next(iter(runs.values())).values()))
    if rows is None:
        rows = {language: np.arange(len(counts)) for language, counts in languages.items()}
    times = _times(1 + max(int(own.max(initial=0)) for own in rows.values()), resamples, random)
    weights = seed_weights([list(by_seed) for by_seed in runs.values()], resamples, random)
    result: dict[str, dict[str, np.ndarray]] = {method: {} for method in runs}
    for language in languages:
        own = times[:, rows[language]].astype(np.float64)  # the sums are whole numbers, which are exact
        for weight, (method, by_seed) in zip(weights, runs.items(), strict=True):
            counts = [by_task[language] for by_task in by_seed.values()]
            scores = [score(np.tensordot(own, each.astype(np.float64), axes=1)) for each in counts]
            # The deviations are those on the observed lines: resampled ones would count the lines' noise twice.
            observed = np.array([score(each.sum(0)) for each in counts])
            result[method][language] = np.mean(scores, axis=0) + weight @ observed
    return result


def _times(clusters: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """How often each cluster is drawn in each resample: (resamples, clusters) uint16."""
    shares = [1 / clusters] * clusters
    sizes = [min(_CHUNK, resamples - done) for done in range(0, resamples, _CHUNK)]
    return np.concatenate([random.multinomial(clusters, shares, size=size).astype(np.uint16) for size in sizes])


def seed_weights(seeds: Sequence[Sequence[int]], resamples: int, random: np.random.Generator) -> list[np.ndarray]:
    """The weights of each method's seeds in each resample, for a random deviation of the mean. Each row sums to 0.

    Seeds that methods share get the same draws, and so do methods with the same number of seeds. The difference of two
    methods with other numbers of seeds is Student's t only approximately.

    Args:
        seeds: the seeds of each method.

    Returns:
        For each method (resamples, its seeds) float64.
    """
    normal = {seed: random.standard_normal(resamples) for seed in sorted({s for own in seeds for s in own})}
    freedoms = sorted({max(1, len(own) - 1) for own in seeds})
    scales = {freedom: np.sqrt(random.chisquare(freedom, resamples) / freedom)[:, None] for freedom in freedoms}
    found = []
    for own in seeds:
        count = len(own)
        draws = np.stack([normal[seed] for seed in own], axis=1)
        centred = draws - draws.mean(1, keepdims=True)
        scale = scales[max(1, count - 1)]
        found.append(centred / scale / np.sqrt(max(1, count * (count - 1))))
    return found
