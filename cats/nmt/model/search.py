"""Beam search and sampling, over cached decoder states. Both work on token ids; see ``decode`` for text."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cats.nmt.errors import UserError
from cats.nmt.model.ensemble import Ensemble
from cats.nmt.model.transformer import Packing, Transformer

# Used instead of -inf where a token is forced, so that scores of different hypotheses still differ in float32.
_LOG_ZERO = -1e4


class Hypothesis(NamedTuple):
    """A translation. ids: without start and eos."""

    ids: list[int]
    score: float


@torch.inference_mode()
def beam_search(
    model: Transformer | Ensemble,
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
    """The `nbest` best hypotheses of every row of source. The best comes first.

    The score of a hypothesis is its log probability / penalty(length). The length includes eos. With p the
    length_penalty, the penalty is ((5 + length) / 6)^p for "google" (Wu et al., 2016, Eq. 14 without the coverage term;
    JoeyNMT has the same) and length^p for "fairseq". With p = 0 the score is the log probability.

    Each step keeps the `beam` best continuations. A hypothesis that ends in eos is finished and keeps its place, so the
    beam of its sentence becomes narrower by one (Bahdanau et al., 2015). With a beam of 1 this is greedy search. The
    search for a sentence stops when no unfinished hypothesis can still get into the nbest.

    Args:
        model: anything with the methods ``encode``, ``start`` and ``step`` of ``Transformer``.
        source: (B, S) int64, padded.
        limits: (B,) int64, the length, including eos, at which hypotheses of this row must end.
        start: the first input of the decoder.
        eos_id: the id that ends a hypothesis.
        forbidden: ids that are never chosen. eos must not be among them.
        beam: at least 1, and at least nbest.

    Raises:
        UserError: the outputs of the model are not finite.
    """
    rows, device = source.shape[0], source.device
    lengths = torch.arange(int(limits.max()) + 2, device=device)
    divisor = ((5 + lengths) / 6 if penalty == "google" else lengths.float()) ** length_penalty
    never = torch.tensor(forbidden, dtype=torch.int64, device=device)
    beams = torch.arange(beam, device=device)
    # The best finished hypotheses of each row of source: their scores, and where each ended, as length * beam + place.
    best = torch.full((rows, nbest), -math.inf, device=device)
    ends = torch.zeros(rows, nbest, dtype=torch.int64, device=device)
    trail: list[tuple[Tensor, Tensor, Tensor]] = []  # for each length: number, parents (n, beam), tokens (n, beam)
    # n sentences are unfinished, each with `beam` places. The decoder state has a row for every place that holds an
    # unfinished hypothesis.
    number = torch.arange(rows, device=device)  # (n,) the row of `source` of each sentence
    scores = torch.full((rows, beam), -math.inf, device=device)  # (n, beam) log probabilities; -inf: an empty place
    scores[:, 0] = 0.0
    left = torch.full((rows, 1), beam, device=device)  # (n, 1) beam minus the finished hypotheses
    places = Packing(scores.isfinite())
    tokens = torch.full((rows,), start, device=device)  # (unfinished hypotheses,) the last token of each
    state: Any = model.start(*model.encode(source))  # each model has a class of its own for it
    length = 0
    while True:
        length += 1
        log_probability = model.step(tokens, state).float().log_softmax(-1)
        if length == 1 and log_probability.isnan().any():
            raise UserError("the outputs of the model are not finite: its training diverged; lower train.lr")
        log_probability.index_fill_(1, never, -math.inf)
        # The best continuations of a sentence are among the best ones of each of its hypotheses. At its limit, a
        # hypothesis must end.
        width = min(beam, log_probability.shape[1])
        top, top_tokens = log_probability.topk(width)
        must_end = (limits == length)[places.index // beam, None]
        ending = torch.full_like(top, -math.inf)
        ending[:, 0] = log_probability[:, eos_id].clamp(min=_LOG_ZERO)
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
        # Log probabilities only fall. So this is an upper bound of the score of any longer hypothesis.
        scores = torch.where(kept & ~ended, value, -math.inf)
        bound = scores.amax(dim=1) / divisor[limits].maximum(divisor[length + 1])
        going = (bound > best[number, -1]).nonzero()[:, 0]
        if not len(going):
            return _trace_back(trail, best, ends, beam)

        row_of_place = (places.mask.flatten().cumsum(0) - 1).view_as(parent)
        rows_before = row_of_place.gather(1, parent)[going]
        number, limits, left, scores, token = number[going], limits[going], left[going], scores[going], token[going]
        places = Packing(scores.isfinite())
        fewer = going if len(going) < len(parent) else None
        state = state.select(rows_before.flatten()[places.index], places, fewer)
        tokens = token.flatten()[places.index]


def _trace_back(
    trail: list[tuple[Tensor, Tensor, Tensor]], best: Tensor, ends: Tensor, beam: int
) -> list[list[Hypothesis]]:
    """Follows each hypothesis back from the place where it ended, from parent to parent; see ``beam_search``."""
    length, place = ends.cpu().numpy() // beam, ends.cpu().numpy() % beam
    ids = np.zeros((*length.shape, len(trail)), dtype=np.int64)
    for last in range(len(trail), 0, -1):
        number, parent, token = (part.cpu().numpy() for part in trail[last - 1])
        here = place[number]
        begun = length[number] >= last  # the hypothesis has a token at this position
        ids[number, :, last - 1] = np.take_along_axis(token, here, 1)
        place[number] = np.where(begun, np.take_along_axis(parent, here, 1), here)
    return [
        [
            Hypothesis(row[: end - 1].tolist(), score)
            for row, end, score in zip(rows, lengths, scores, strict=True)
            if math.isfinite(score)
        ]
        for rows, lengths, scores in zip(ids, length.tolist(), best.tolist(), strict=True)
    ]


@torch.inference_mode()
def sample(
    model: Transformer | Ensemble,
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
    """Draws a hypothesis for every row of source.

    The score is its log probability under the model, without temperature, top_k and top_p.

    Args:
        model, source, limits, start, eos_id, forbidden: see ``beam_search``.
        u: (B, longest limit) float64, uniform random numbers in [0, 1). Each chooses a token by inverting the
            cumulative distribution, with tokens ordered from the likeliest to the least likely.
        temperature: the logits are divided by it.
        top_k: draw only from this many of the likeliest tokens; 0: from all.
        top_p: draw only from the fewest likeliest tokens that together reach this probability (Holtzman et al., 2020).

    Raises:
        UserError: the outputs of the model are not finite.
    """
    never = torch.tensor(forbidden, dtype=torch.int64, device=source.device)
    number = torch.arange(source.shape[0], device=source.device)
    tokens = torch.full_like(number, start)
    totals = torch.zeros(len(number), dtype=torch.float64, device=source.device)
    output = torch.full(u.shape, eos_id, device=source.device)
    state: Any = model.start(*model.encode(source))  # each model has a class of its own for it
    for position in range(u.shape[1]):
        logits = model.step(tokens, state).double()
        if position == 0 and logits.isnan().any():
            raise UserError("the outputs of the model are not finite: its training diverged; lower train.lr")
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
    return [
        Hypothesis(row[:end], total) for row, end, total in zip(output.tolist(), ends, totals.tolist(), strict=True)
    ]
