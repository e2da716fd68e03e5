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

    It has what the searches in ``cats.nmt.model.search`` need of a model. The logits of ``step`` are the logarithms of
    the mean probabilities.

    Args:
        models: over the same vocabulary. Their sizes may differ.
    """

    def __init__(self, models: Iterable[Transformer]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

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
        total: Tensor | None = None
        for model, own in zip(self._members(), state.members, strict=True):
            log_probability = model.step(tokens, own).float().log_softmax(-1)
            total = log_probability if total is None else torch.logaddexp(total, log_probability)
        assert total is not None
        return total - math.log(len(self.models))
