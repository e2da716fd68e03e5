"""Several models that translate together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from cats.nmt.model.transformer import DecoderState, Packing, Transformer


@dataclass
class EnsembleState:
    """The decoder states of all members, which hold the same hypotheses."""

    members: list[DecoderState]

    def select(self, index: Tensor, places: Packing, sentences: Tensor | None = None) -> EnsembleState:
        """See ``DecoderState.select``."""
        return EnsembleState([state.select(index, places, sentences) for state in self.members])


class Ensemble(nn.Module):
    """The mean of the members' probabilities of the next token, as in fairseq, and in Sockeye by default.

    It has what the searches in ``cats.nmt.model.search`` and ``cats.nmt.model.loss.line_nll`` need of a model. Its
    logits are the logarithms of the mean probabilities.

    Args:
        models: over the same vocabulary. Their sizes may differ.
    """

    def __init__(self, models: Iterable[Transformer]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.pad_id = next(iter(self._members())).pad_id

    def _members(self) -> Iterable[Transformer]:
        return cast(Iterable[Transformer], self.models)

    def encode(self, source: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """What ``start`` takes: for each member, what its own ``encode`` returns."""
        return tuple(model.encode(source) for model in self._members())

    def start(self, *encoded: tuple[Tensor, ...]) -> EnsembleState:
        """The state before the first decoding step. Its arguments: see ``encode``."""
        every = zip(self._members(), encoded, strict=True)
        return EnsembleState([model.start(*own) for model, own in every])

    def step(self, tokens: Tensor, state: EnsembleState) -> Tensor:
        """Log probabilities (rows, V) of the next token; see ``Transformer.step``."""
        return _mean(model.step(tokens, own) for model, own in zip(self._members(), state.members, strict=True))

    def logits(
        self,
        source: Tensor,
        target_in: Tensor,
        source_cells: Tensor | None = None,
        target_cells: Tensor | None = None,
    ) -> Tensor:
        """Log probabilities (N, V) of the tokens that follow those of target_in; see ``Transformer.logits``."""
        return _mean(model.logits(source, target_in, source_cells, target_cells) for model in self._members())


def _mean(logits: Iterable[Tensor]) -> Tensor:
    """The logarithms of the mean probabilities, (.., V) float32, of logits of the same shape."""
    total, count = None, 0
    for each in logits:
        log_probability = each.float().log_softmax(-1)
        total = log_probability if total is None else torch.logaddexp(total, log_probability)
        count += 1
    assert total is not None
    return total - math.log(count)
