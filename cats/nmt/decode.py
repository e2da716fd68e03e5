"""Translation: batched beam search over cached decoder states."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cats.nmt.model import Transformer, pad
from cats.nmt.tokenizer import Tokenizer

_UNLIKELY = -1e4  # stands for log 0 where there is no other choice; float32 still tells the sums apart


def translate(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[str],
    language: str,
    *,
    beam: int = 4,
    length_penalty: float = 1.0,
    batch_tokens: int = 4000,
) -> list[str]:
    """Translations of `lines` into `language`, in their order; a blank line gives an empty one.

    Args:
        model: is run in evaluation mode, and gets back the mode it had.
        tokenizer: the one the model was trained with.
        lines: source text.
        language: one of the tokenizer's languages.
        beam: hypotheses kept per sentence; 1 is greedy search.
        length_penalty: see ``beam_search``.
        batch_tokens: source tokens, padding included, that are translated at a time; a longer sentence goes alone.

    The translation of a line does not depend on the other lines, save for ties within float rounding.

    Raises:
        UserError: the tokenizer does not know `language`.
    """
    encoded = tokenizer.encode_source(lines, language)
    # Longest first: what does not fit into memory fails at once.
    order = sorted((i for i, line in enumerate(lines) if line.strip()), key=lambda i: -len(encoded[i]))
    device = next(model.parameters()).device
    result: list[list[int]] = [[] for _ in lines]
    was_training = model.training
    model.eval()
    try:
        while order:
            size = max(1, batch_tokens // len(encoded[order[0]]))
            batch, order = order[:size], order[size:]
            sources = [encoded[i] for i in batch]
            found = beam_search(
                model,
                pad(sources, tokenizer.pad_id, device),
                torch.tensor([2 * len(source) + 10 for source in sources], device=device),
                start=tokenizer.start(language),
                eos_id=tokenizer.eos_id,
                forbidden=[i for i in range(tokenizer.first_piece) if i != tokenizer.eos_id],
                beam=beam,
                length_penalty=length_penalty,
            )
            for i, ids in zip(batch, found, strict=True):
                result[i] = ids
    finally:
        model.train(was_training)
    return tokenizer.decode(result)


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
) -> list[list[int]]:
    """The best hypothesis of every row of source, without start and eos.

    Hypotheses are compared by log probability / ((5 + length) / 6)^length_penalty (Wu et al., 2016, Eq. 14 without the
    coverage term), eos counted as one token of the length; 0 compares log probabilities.

    A step keeps the `beam` best continuations. One that ends in eos is done and keeps its place, so the beam of its
    sentence narrows by one (Bahdanau et al., 2015): with beam 1 the first to end is the result, which is greedy search.
    A sentence is done when no open hypothesis can overtake the best ended one, whatever is still appended.

    Args:
        model: anything with the ``encode``, ``start`` and ``step`` of ``Transformer``.
        source: (B, S) int64, padded.
        limits: (B,) int64, the length, eos included, at which a hypothesis of this row has to end.
        start: the decoder's first input.
        forbidden: ids that are never chosen. Not eos.
        beam: at least 1.
    """
    rows, device = source.shape[0], source.device
    penalty = ((5 + torch.arange(int(limits.max()) + 2, device=device)) / 6) ** length_penalty  # by length
    result: list[list[int]] = [[] for _ in range(rows)]
    state = model.start(*model.encode(source))
    # n sentences are in work, each with `beam` places; the state has a row for every place with an open hypothesis.
    number = torch.arange(rows, device=device)  # (n,) which row of source
    scores = torch.full((rows, beam), -math.inf, device=device)  # (n, beam) log probability; -inf: no open hypothesis
    scores[:, 0] = 0.0
    history = torch.empty(rows, beam, 0, dtype=torch.int64, device=device)  # (n, beam, length)
    places = torch.full((rows,), beam, device=device)  # (n,) the beam's width less the hypotheses that ended
    best = torch.full((rows,), -math.inf, device=device)  # (n,) penalised score of the best ended hypothesis
    tokens = torch.full((rows,), start, device=device)  # (open hypotheses,) the last token of each
    length = 0
    while True:
        length += 1
        is_open = scores.isfinite()
        log_probability = model.step(tokens, state).float().log_softmax(-1)
        log_probability[:, forbidden] = -math.inf
        must_end = (limits == length)[:, None].expand_as(is_open)[is_open]
        ending = log_probability[must_end, eos_id].clamp(min=_UNLIKELY)
        log_probability[must_end] = -math.inf
        log_probability[must_end, eos_id] = ending

        # The best of a sentence are among the best of each of its hypotheses.
        width = min(beam, log_probability.shape[1])
        top, top_tokens = log_probability.topk(width)
        candidates = scores.new_full((*scores.shape, width), -math.inf)
        candidates[is_open] = scores[is_open][:, None] + top
        candidate_tokens = history.new_zeros(candidates.shape)
        candidate_tokens[is_open] = top_tokens
        value, chosen = candidates.flatten(1).topk(beam)  # (n, beam), descending
        parent, token = chosen // width, candidate_tokens.flatten(1).gather(1, chosen)
        history = torch.cat([history.gather(1, parent[:, :, None].expand_as(history)), token[:, :, None]], dim=2)
        kept = value.isfinite() & (torch.arange(beam, device=device) < places[:, None])

        ended = kept & (token == eos_id)
        score, place = torch.where(ended, value / penalty[length], -math.inf).max(dim=1)
        for i in (score > best).nonzero()[:, 0].tolist():
            result[number[i]] = history[i, place[i], :-1].tolist()
        best = best.maximum(score)
        places = places - ended.sum(dim=1)
        # Log probabilities only fall, so this bounds what an open hypothesis can reach at any length still allowed.
        scores = torch.where(kept & ~ended, value, -math.inf)
        bound = scores.amax(dim=1) / penalty[limits].maximum(penalty[length + 1])
        going = bound > best
        if not going.any():
            return result

        row_of_place = (is_open.flatten().cumsum(0) - 1).view_as(parent)
        is_open = scores.isfinite() & going[:, None]
        state = state.select(row_of_place.gather(1, parent)[is_open])
        tokens = token[is_open]
        number, limits, places, best = number[going], limits[going], places[going], best[going]
        scores, history = scores[going], history[going]
