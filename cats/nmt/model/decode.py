"""Translation: batched beam search and sampling over cached decoder states."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cats.nmt.data.batch import pad
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model.transformer import Packing, Transformer

Hypothesis = tuple[list[int], float]  # ids without start and eos, and the score

_UNLIKELY = -1e4  # stands for log 0 where there is no other choice; float32 still tells the sums apart


def translate(
    model: Transformer, tokenizer: Tokenizer, lines: list[str], source: str, target: str, **options: Any
) -> list[str]:
    """The best translation of every line; `options` as of ``translations``."""
    return [found[0][0] for found in translations(model, tokenizer, lines, source, target, **options)]


def translations(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[str],
    source: str,
    target: str,
    *,
    beam: int = 4,
    penalty: str = "google",
    length_penalty: float = 1.0,
    batch_tokens: int = 4000,
    max_length: int = 1024,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 1,
    nbest: int = 1,
    before: int = 0,
) -> list[list[tuple[str, float]]]:
    """[(translation, score), ..] of every line, `nbest` of them; a blank line gives one, empty.

    Args:
        model: is run in evaluation mode, and gets back the mode it had.
        tokenizer: the one the model was trained with.
        lines: text in the language `source`.
        target: one of the tokenizer's languages, to translate into.
        beam, penalty, length_penalty: see ``beam_search``.
        batch_tokens: source tokens, padding included, that are translated at a time; a longer sentence goes alone.
        max_length: pieces of a line that are translated; that the rest is not is said on standard error.
        sample: draw translations instead of searching for the best.
        temperature, top_k, top_p: see ``draw``.
        seed: of the draws, which are a function of it and of the line's number.
        nbest: translations a line: the best first, at most `beam`; drawn ones as they come.
        before: lines that came before these, which count in their numbers.

    The translations of a line do not depend on the other lines, save for ties within float rounding.

    Raises:
        UserError: the tokenizer does not know a language, or the beam is too narrow for `nbest`.
    """
    if not sample and nbest > beam:
        raise UserError(f"a beam of {beam} has no {nbest} best; set decode.beam (--beam) to {nbest}")
    encoded = tokenizer.encode_source(lines, source, target)
    ends = [len(part) for part in tokenizer.frame(source, target)]
    for i, row in enumerate(encoded):
        if len(row) > max_length + sum(ends):
            what = f"of {len(row) - sum(ends):,} pieces the first {max_length:,} are translated (decode.max_length)"
            print(f"cats: line {before + i + 1} is too long: {what}", file=sys.stderr)
            del row[ends[0] + max_length : len(row) - ends[1]]
    # Longest first: what does not fit into memory fails at once.
    order = sorted((i for i, line in enumerate(lines) if line.strip()), key=lambda i: -len(encoded[i]))
    device = next(model.parameters()).device
    special: dict[str, Any] = {
        "start": tokenizer.start(target),
        "eos_id": tokenizer.eos_id,
        "forbidden": [i for i in range(tokenizer.first_piece) if i != tokenizer.eos_id],
    }
    search = partial(beam_search, model, beam=beam, penalty=penalty, length_penalty=length_penalty, nbest=nbest)
    result: list[list[Hypothesis]] = [[([], 0.0)] for _ in lines]
    was_training = model.training
    model.eval()
    try:
        while order:
            size = max(1, batch_tokens // len(encoded[order[0]]))
            batch, order = order[:size], order[size:]
            rows = pad([encoded[i] for i in batch], tokenizer.pad_id, device)
            limits = torch.tensor([2 * len(encoded[i]) + 10 for i in batch], device=device)
            if sample:
                turns = []
                for turn in range(nbest):
                    numbers = [np.random.default_rng([seed, before + i, turn]).random(int(limits[0])) for i in batch]
                    u = torch.tensor(np.stack(numbers), device=device)
                    turns.append(draw(model, rows, limits, u, temperature, top_k, top_p, **special))
                found = [list(drawn) for drawn in zip(*turns, strict=True)]
            else:
                found = search(rows, limits, **special)
            for i, hypotheses in zip(batch, found, strict=True):
                result[i] = hypotheses
    finally:
        model.train(was_training)
    texts = iter(tokenizer.decode([ids for hypotheses in result for ids, _ in hypotheses]))
    return [[(next(texts), score) for _, score in hypotheses] for hypotheses in result]


@torch.inference_mode()
def beam_search(
    model: Transformer,
    source: Tensor,
    limits: Tensor,
    *,
    start: int,
    eos_id: int,
    forbidden: list[int],
    beam: int,
    length_penalty: float,
    penalty: str = "google",
    nbest: int = 1,
) -> list[list[Hypothesis]]:
    """The `nbest` best hypotheses of every row of source, the best first, each with its penalised log probability.

    Hypotheses are compared by log probability / lp(length), eos counted as one token of the length. With p the
    length_penalty, lp is ((5 + length) / 6)^p for "google" (Wu et al., 2016, Eq. 14 without the coverage term; also
    JoeyNMT's) and length^p for "fairseq"; p = 0 compares log probabilities.

    A step keeps the `beam` best continuations. One that ends in eos is done and keeps its place, so the beam of its
    sentence narrows by one (Bahdanau et al., 2015): with beam 1 the first to end is the result, which is greedy search.
    A sentence is done when no open hypothesis can overtake the last of its nbest, whatever is still appended.

    Args:
        model: anything with the ``encode``, ``start`` and ``step`` of ``Transformer``.
        source: (B, S) int64, padded.
        limits: (B,) int64, the length, eos included, at which a hypothesis of this row has to end.
        start: the decoder's first input.
        forbidden: ids that are never chosen. Not eos.
        beam: at least 1, and at least nbest.
    """
    rows, device = source.shape[0], source.device
    lengths = torch.arange(int(limits.max()) + 2, device=device)
    divisor = ((5 + lengths) / 6 if penalty == "google" else lengths.float()) ** length_penalty
    never = torch.tensor(forbidden, dtype=torch.int64, device=device)
    beams = torch.arange(beam, device=device)
    # The best that ended, by row of source: penalised scores, and length * beam + place in the beam.
    best = torch.full((rows, nbest), -math.inf, device=device)
    ends = torch.zeros(rows, nbest, dtype=torch.int64, device=device)
    trail: list[tuple[Tensor, Tensor, Tensor]] = []  # by length: number, and (n, beam) parents and tokens
    # n sentences are in work, each with `beam` places; the state has a row for every place with an open hypothesis.
    number = torch.arange(rows, device=device)  # (n,) which row of source
    scores = torch.full((rows, beam), -math.inf, device=device)  # (n, beam) log probability; -inf: no open hypothesis
    scores[:, 0] = 0.0
    left = torch.full((rows, 1), beam, device=device)  # (n, 1) the beam's width less the hypotheses that ended
    places = Packing(scores.isfinite())
    tokens = torch.full((rows,), start, device=device)  # (open hypotheses,) the last token of each
    state = model.start(*model.encode(source))
    length = 0
    while True:
        length += 1
        log_probability = model.step(tokens, state).float().log_softmax(-1)
        if length == 1 and log_probability.isnan().any():
            raise UserError("the model's outputs are not finite: its training diverged")
        log_probability.index_fill_(1, never, -math.inf)
        # The best of a sentence are among the best of each of its hypotheses. One at its limit has to end.
        width = min(beam, log_probability.shape[1])
        top, top_tokens = log_probability.topk(width)
        must_end = (limits == length)[places.index // beam, None]
        ending = torch.full_like(top, -math.inf)
        ending[:, 0] = log_probability[:, eos_id].clamp(min=_UNLIKELY)
        top, top_tokens = torch.where(must_end, ending, top), torch.where(must_end, eos_id, top_tokens)
        candidates = scores.new_full((scores.numel(), width), -math.inf)
        candidates.index_copy_(0, places.index, scores.flatten()[places.index, None] + top)
        candidate_tokens = top_tokens.new_zeros(candidates.shape).index_copy_(0, places.index, top_tokens)
        value, chosen = candidates.view(len(scores), -1).topk(beam)  # (n, beam), descending
        parent, token = chosen // width, candidate_tokens.view(len(scores), -1).gather(1, chosen)
        trail.append((number, parent, token))

        kept = value.isfinite() & (beams < left)
        ended = kept & (token == eos_id)
        left = left - ended.sum(dim=1, keepdim=True)
        known = torch.cat([best[number], torch.where(ended, value / divisor[length], -math.inf)], dim=1)
        ways = torch.cat([ends[number], (length * beam + beams).expand_as(token)], dim=1)
        ranked = known.sort(dim=1, descending=True, stable=True).indices[:, :nbest]
        best[number], ends[number] = known.gather(1, ranked), ways.gather(1, ranked)
        # Log probabilities only fall, so this bounds what an open hypothesis can reach at any length still allowed.
        scores = torch.where(kept & ~ended, value, -math.inf)
        bound = scores.amax(dim=1) / divisor[limits].maximum(divisor[length + 1])
        going = (bound > best[number, -1]).nonzero()[:, 0]
        if not len(going):
            return _traced(trail, best, ends, beam)

        row_of_place = (places.mask.flatten().cumsum(0) - 1).view_as(parent)
        rows_before = row_of_place.gather(1, parent)[going]
        number, limits, left, scores, token = number[going], limits[going], left[going], scores[going], token[going]
        places = Packing(scores.isfinite())
        fewer = going if len(going) < len(parent) else None
        state = state.select(rows_before.flatten()[places.index], places, fewer)
        tokens = token.flatten()[places.index]


def _traced(
    trail: list[tuple[Tensor, Tensor, Tensor]], best: Tensor, ends: Tensor, beam: int
) -> list[list[Hypothesis]]:
    """The hypotheses that `ends` points to, each followed back from parent to parent; see ``beam_search``."""
    length, place = ends.cpu().numpy() // beam, ends.cpu().numpy() % beam
    ids = np.zeros((*length.shape, len(trail)), dtype=np.int64)
    for last in range(len(trail), 0, -1):
        number, parent, token = (part.cpu().numpy() for part in trail[last - 1])
        here = place[number]
        on_it = length[number] >= last
        ids[number, :, last - 1] = np.take_along_axis(token, here, 1)
        place[number] = np.where(on_it, np.take_along_axis(parent, here, 1), here)
    return [
        [
            (row[: end - 1].tolist(), score)
            for row, end, score in zip(rows, lengths, scores, strict=True)
            if math.isfinite(score)
        ]
        for rows, lengths, scores in zip(ids, length.tolist(), best.tolist(), strict=True)
    ]


@torch.inference_mode()
def draw(
    model: Transformer,
    source: Tensor,
    limits: Tensor,
    u: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    *,
    start: int,
    eos_id: int,
    forbidden: list[int],
) -> list[Hypothesis]:
    """A hypothesis drawn for every row of source, with its log probability under the model (temperature 1, no cuts).

    Args:
        model, source, limits, start, eos_id, forbidden: as of ``beam_search``.
        u: (B, longest limit) float64, uniform in [0, 1): what chooses each token, the likelier ones first.
        temperature: the logits are divided by it.
        top_k: only so many of the likeliest tokens can be drawn; 0: all.
        top_p: only the likeliest tokens that it takes to reach this probability can be drawn (Holtzman et al., 2020).
    """
    never = torch.tensor(forbidden, dtype=torch.int64, device=source.device)
    number = torch.arange(source.shape[0], device=source.device)
    tokens = torch.full_like(number, start)
    totals = torch.zeros(len(number), dtype=torch.float64, device=source.device)
    output = torch.full(u.shape, eos_id, device=source.device)
    state = model.start(*model.encode(source))
    for position in range(u.shape[1]):
        logits = model.step(tokens, state).double()
        if position == 0 and logits.isnan().any():
            raise UserError("the model's outputs are not finite: its training diverged")
        log_probability = logits.log_softmax(-1)
        share, ids = (logits.index_fill_(1, never, -math.inf) / temperature).softmax(-1).sort(descending=True)
        share[:, top_k or share.shape[1] :] = 0.0
        share[share.cumsum(-1) - share >= top_p] = 0.0
        reached = share.cumsum(-1)
        chosen = torch.searchsorted(reached, u[number, position, None] * reached[:, -1:], right=True)
        tokens = ids.gather(1, chosen.minimum((share > 0).sum(-1, keepdim=True) - 1))[:, 0]
        tokens = torch.where(limits[number] == position + 1, eos_id, tokens)
        output[number, position] = tokens
        totals[number] += log_probability.gather(1, tokens[:, None])[:, 0]
        open_ = (tokens != eos_id).nonzero()[:, 0]
        if not len(open_):
            break
        fewer = open_ if len(open_) < len(tokens) else None
        state = state.select(open_, Packing(torch.ones_like(open_, dtype=torch.bool)[:, None]), fewer)
        number, tokens = number[open_], tokens[open_]
    ends = (output == eos_id).int().argmax(dim=1).tolist()
    return [(row[:end], total) for row, end, total in zip(output.tolist(), ends, totals.tolist(), strict=True)]
