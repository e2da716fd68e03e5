"""Translation: lines of text in, lines of text out. For the search itself see ``search``."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cats.nmt.config import schema
from cats.nmt.data.batch import pad
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.files import one_line
from cats.nmt.model.ensemble import Ensemble
from cats.nmt.model.search import Hypothesis, beam_search, sample
from cats.nmt.model.transformer import Transformer

_MOST_LOGITS = 1 << 28  # in a batch: 1 GiB


class LengthLimit(NamedTuple):
    """The longest translation of a source of S tokens has ratio * S + extra tokens, tags and ends included."""

    ratio: float = 2.0
    extra: float = 10.0

    @classmethod
    def of_pairs(cls, lengths: np.ndarray) -> LengthLimit:
        """A limit for a task: 1.5 times the mean ratio, plus 10 or as many tokens as 99.9 % of the pairs need.

        Sockeye's limit is the mean plus two standard deviations of the ratio. The ratios of short lines vary much more
        than those of long ones, so here the room that all lengths get is a number of tokens.

        Args:
            lengths: (pairs, 2), the source and target tokens of training pairs, at least one pair.
        """
        source, target = lengths[:: max(1, len(lengths) // 1_000_000)].T.astype(np.float64)  # enough to count
        ratio = round(1.5 * float(target.sum() / source.sum()), 3)
        return cls(ratio, float(max(10, np.ceil(np.quantile(target - ratio * source, 0.999)))))

    def tokens(self, source: int) -> int:
        """The length limit for a source of so many tokens."""
        return max(1, int(self.ratio * source + self.extra))


class Translation(NamedTuple):
    """A translation of one line and its score: see ``beam_search``, or ``sample``. The text is one line, too."""

    text: str
    score: float


def translate(
    model: Transformer | Ensemble,
    tokenizer: Tokenizer,
    lines: list[str],
    source: str,
    target: str,
    settings: schema.Decode,
    *,
    limit: LengthLimit | None = None,
    task: str = "",
) -> list[str]:
    """The best translation of every line; see ``translations``."""
    found = translations(model, tokenizer, lines, source, target, settings, limit=limit, task=task)
    return [best.text for best, *_ in found]


def translations(
    model: Transformer | Ensemble,
    tokenizer: Tokenizer,
    lines: list[str],
    source: str,
    target: str,
    settings: schema.Decode,
    *,
    nbest: int = 1,
    lines_before: int = 0,
    limit: LengthLimit | None = None,
    task: str = "",
) -> list[list[Translation]]:
    """The `nbest` best translations of every line, the best first. A blank line gets one, which is empty.

    With `settings.sample` they are drawn at random instead, in no particular order. The draws depend on the seed and on
    the number of the line. Apart from ties within float rounding, the translations of a line do not depend on the other
    lines.

    Args:
        model: it is run in evaluation mode; then its mode is restored.
        tokenizer: the one that the model, or every model of the ensemble, was trained with.
        lines: text in the language `source`.
        target: the language to translate into, one of the tokenizer's.
        settings: pieces of a line beyond `settings.max_length` are not translated, and a message says so.
        nbest: translations per line, at most `settings.beam` unless they are sampled.
        lines_before: the number of lines that came before these ones, if the text comes in blocks.
        limit: the longest translations, unless `settings.max_ratio` says it. None: ``LengthLimit()``.
        task: what the message about a line that is too long begins with, if there are the lines of several tasks.

    Raises:
        UserError: the tokenizer does not know a language, or `nbest` is larger than the beam.
    """
    if not settings.sample and nbest > settings.beam:
        raise UserError(
            f"a beam of {settings.beam} is too small for the {nbest} best; set decode.beam (--beam) to {nbest}"
        )
    limit = LengthLimit(settings.max_ratio) if settings.max_ratio else limit or LengthLimit()
    encoded = _encode(tokenizer, lines, source, target, settings.max_length, lines_before, task)
    # The longest lines come first, so that running out of memory shows at once.
    order = sorted((i for i, line in enumerate(lines) if line.strip()), key=lambda i: -len(encoded[i]))
    device = next(model.parameters()).device
    result = [[Hypothesis([], 0.0)] for _ in lines]
    was_training = model.training
    model.eval()
    most = _MOST_LOGITS // (tokenizer.vocab_size * (1 if settings.sample else settings.beam))  # lines in a batch
    try:
        while order:
            size = max(1, min(settings.batch_tokens // len(encoded[order[0]]), most))
            batch, order = order[:size], order[size:]
            rows = pad([encoded[i] for i in batch], tokenizer.pad_id, device)
            limits = torch.tensor([limit.tokens(len(encoded[i])) for i in batch], device=device)
            numbers = [lines_before + i for i in batch]
            found = _search(model, tokenizer, target, rows, limits, numbers, settings, nbest)
            for i, hypotheses in zip(batch, found, strict=True):
                result[i] = hypotheses
    finally:
        model.train(was_training)
    texts = iter(tokenizer.decode([ids for hypotheses in result for ids, _ in hypotheses]))
    return [[Translation(one_line(next(texts)), score) for _, score in hypotheses] for hypotheses in result]


def _encode(
    tokenizer: Tokenizer, lines: list[str], source: str, target: str, max_length: int, lines_before: int, task: str
) -> list[list[int]]:
    """The source ids of every line, cut to `max_length` pieces. A message names each line that is cut."""
    encoded = tokenizer.encode_source(lines, source, target)
    before, after = (len(part) for part in tokenizer.frame(source, target))  # tags and eos around the pieces
    lengths = [len(row) - before - after for row in encoded]
    for i in sorted(cut(encoded, before, after, max_length)):
        what = f"only the first {max_length:,} of {lengths[i]:,} pieces are translated (decode.max_length)"
        where = f"{task}: line" if task else "line"
        print(f"cats: {where} {lines_before + i + 1} is too long: {what}", file=sys.stderr)
    return encoded


def cut(rows: list[list[int]], before: int, after: int, most: int) -> set[int]:
    """Cuts the pieces of every row to `most`, and keeps what is around them.

    Args:
        before, after: tokens before and after the pieces, such as tags.

    Returns:
        The indices of the rows that were longer.
    """
    long = {i for i, row in enumerate(rows) if len(row) - before - after > most}
    for i in long:
        del rows[i][before + most : len(rows[i]) - after]
    return long


def _search(
    model: Transformer | Ensemble,
    tokenizer: Tokenizer,
    target: str,
    rows: Tensor,
    limits: Tensor,
    numbers: list[int],
    settings: schema.Decode,
    nbest: int,
) -> list[list[Hypothesis]]:
    """The hypotheses of the encoded lines of one batch. numbers: the lines' numbers in the whole text, from 0."""
    special: dict[str, Any] = {
        "start": tokenizer.start(target),
        "eos_id": tokenizer.eos_id,
        "forbidden": [i for i in range(tokenizer.first_piece) if i != tokenizer.eos_id],
    }
    if not settings.sample:
        return beam_search(
            model,
            rows,
            limits,
            **special,
            beam=settings.beam,
            penalty=settings.penalty,
            length_penalty=settings.length_penalty,
            nbest=nbest,
        )
    turns = []
    for turn in range(nbest):
        uniform = [np.random.default_rng([settings.seed, i, turn]).random(int(limits[0])) for i in numbers]
        u = torch.tensor(np.stack(uniform), device=rows.device)
        turns.append(sample(model, rows, limits, u, settings.temperature, settings.top_k, settings.top_p, **special))
    return [list(drawn) for drawn in zip(*turns, strict=True)]
